import sys

import pytest

from perplab.errors import PerplabError
from perplab.training.metrics import MetricsLog, read_metrics


@pytest.fixture
def diary(tmp_path):
    """A diary of five steps with one evaluation."""
    with MetricsLog(tmp_path, resume_step=0, tensorboard=False) as log:
        for step in range(1, 6):
            log.write(step, loss=1 / step)
        log.write(5, heldout_bits_per_byte={"prose": 1.0, "all": 2.0})
    return tmp_path / "metrics.jsonl"


def steps(path):
    return [record["step"] for record in read_metrics(path)]


def test_what_is_written_is_read_back(diary):
    assert read_metrics(diary)[0] == {"step": 1, "loss": 1.0}
    assert read_metrics(diary)[-1] == {"step": 5, "heldout_bits_per_byte": {"prose": 1.0, "all": 2.0}}


def test_every_record_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path, resume_step=0, tensorboard=False) as log:
        log.write(1, loss=0.5)
        assert steps(tmp_path / "metrics.jsonl") == [1]


def test_missing_file_is_an_empty_diary(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 10))
def test_half_a_last_line_is_left_out_and_overwritten(diary, cut):
    diary.write_bytes(diary.read_bytes()[:-cut])
    assert steps(diary) == [1, 2, 3, 4, 5]
    with MetricsLog(diary.parent, resume_step=5, tensorboard=False) as log:
        log.write(6, loss=0.1)
    assert steps(diary) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "3"}', ""])
def test_corrupt_middle_line_is_named(diary, line):
    lines = diary.read_text().splitlines()
    lines[2] = line
    diary.write_text("\n".join(lines) + "\n")
    with pytest.raises(PerplabError, match=f"{diary} line 3 is not a metrics record"):
        read_metrics(diary)
    with pytest.raises(PerplabError, match="line 3"):
        MetricsLog(diary.parent, resume_step=5, tensorboard=False)


@pytest.mark.parametrize("resume", range(7))
def test_resuming_drops_later_steps_and_keeps_the_others(diary, resume):
    before = [record for record in read_metrics(diary) if record["step"] <= resume]
    with MetricsLog(diary.parent, resume_step=resume, tensorboard=False):
        assert read_metrics(diary) == before


def test_process_that_does_not_write_leaves_no_file(tmp_path):
    with MetricsLog(None, resume_step=0, tensorboard=True) as log:
        log.write(1, loss=0.5)
    assert list(tmp_path.iterdir()) == []


def test_missing_tensorboard_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PerplabError, match=r"TensorBoard is not installed: pip install 'perplab\[tensorboard\]'"):
        MetricsLog(tmp_path, resume_step=0, tensorboard=True)


def test_tensorboard_gets_numbers_and_numbers_by_domain(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, resume_step=0, tensorboard=True) as log:
        log.write(1, loss=0.5)
        log.write(1, heldout_bits_per_byte={"all": 2.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == [0.5]
    assert [event.value for event in events.Scalars("heldout_bits_per_byte/all")] == [2.0]
