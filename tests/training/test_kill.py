import json
import random
import signal
import time

import pytest

from runs_in_processes import KillAtRename, finish, start


def records(out):
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def without_timing(record):
    return {key: value for key, value in record.items() if key != "tokens_per_second"}


def assert_same_run(out, whole):
    """Weights to the byte, and each record of the diary once and equal but for the time it took."""
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [*map(without_timing, records(out))] == [*map(without_timing, records(whole))]
    leftovers = [path for path in (out / "run").rglob("*") if path.name.startswith((".partial-", ".previous-"))]
    assert leftovers == []


def kill_after_step(process, out, step, seconds):
    """SIGKILL a little after the diary tells of a step: during the next one, an evaluation or a checkpoint."""
    diary = out / "run" / "metrics.jsonl"
    while process.is_alive() and not (diary.exists() and f'{{"step": {step},' in diary.read_text()):
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    return finish(process)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_run_killed_at_random_moments_ends_as_if_nothing_had_happened(corpus_file, tiny, tmp_path, kills):
    config = tiny(tokens=10 * kills * 512)
    draw = random.Random(kills)
    for step in sorted(draw.sample(range(1, 10 * kills - 10), kills)):
        process = start(corpus_file, tmp_path / "out", config)
        assert kill_after_step(process, tmp_path / "out", step, draw.uniform(0, 0.03)) == [-signal.SIGKILL]
    assert finish(start(corpus_file, tmp_path / "out", config)) == [0]
    assert finish(start(corpus_file, tmp_path / "whole", config)) == [0]
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_run_killed_before_any_of_its_renames_ends_as_if_nothing_had_happened(corpus_file, tiny, tmp_path, stride):
    """Settings, tokenizer, token stores, diary, checkpoints (between the two renames too) and the finished model."""
    config = tiny(tokens=6 * 512, checkpoint_every=2)
    assert finish(start(corpus_file, tmp_path / "whole", config)) == [0]
    number, alive = stride, False
    while not alive:
        out = tmp_path / f"killed-{number}"
        alive = finish(start(corpus_file, out, config, prepare=KillAtRename(number))) == [0]
        if not alive:
            assert finish(start(corpus_file, out, config)) == [0]
            assert_same_run(out, tmp_path / "whole")
        number += stride
    assert number > 10
