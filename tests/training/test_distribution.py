"""Two processes on the CPU with gloo do what one does, and take over from one another."""

import json
import os
import subprocess
import sys

import pytest

from perplab.errors import PerplabError
from perplab.training import train
from perplab.training.distribution import Processes
from runs_in_processes import InterruptAfter, finish, start, start_group

SCRIPT = """
import sys
import torch
from perplab.training import TrainConfig, train
torch.set_num_threads(1)
corpus, out, settings = sys.argv[1:]
settings = eval(settings)
model = train(corpus, out, TrainConfig(**settings), progress=False)
print("trained", model.path, model.model.num_parameters())
"""


def losses(out):
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}


def heldout(out):
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    return [record["heldout_bits_per_byte"]["all"] for record in map(json.loads, lines) if "loss" not in record]


def weights(out):
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


def assert_close_to(out, alone):
    """Same losses, held-out costs and weights, up to the order in which float32 numbers were added."""
    import torch

    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)
    assert heldout(out) == pytest.approx(heldout(alone), abs=1e-4)
    torch.testing.assert_close(weights(out), weights(alone), rtol=0, atol=2e-3)


@pytest.fixture
def alone(corpus_file, tmp_path):
    """`alone(settings)` is the folder of a run by one process."""

    def run(settings):
        assert finish(start(corpus_file, tmp_path / "alone", settings)) == [0]
        return tmp_path / "alone"

    return run


def test_torchrun_with_two_processes_trains_what_one_trains(corpus_file, tiny, alone, tmp_path):
    settings = tiny(micro_batch_tokens=128)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(
        [*command, corpus_file, tmp_path / "out", repr(vars(settings))],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"trained {tmp_path / 'out'} 72448\n") == 2  # every process gets the model
    assert_close_to(tmp_path / "out", alone(settings))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_run_continues_on_any_number_of_processes(corpus_file, tiny, alone, tmp_path, before, after, tied):
    settings, out = tiny(micro_batch_tokens=128, tie_word_embeddings=tied, qk_norm=not tied), tmp_path / "out"
    first = start_group(corpus_file, out, settings, number=before, prepare=InterruptAfter(7))
    assert finish(*first) == [0] * before
    assert [*losses(out)] == [1, 2, 3, 4, 5, 6, 7]
    assert not (out / "model.safetensors").exists()
    assert finish(*start_group(corpus_file, out, settings, number=after)) == [0] * after
    assert_close_to(out, alone(settings))


def test_two_processes_train_recurrent_layers_and_ngram_heads_as_one_does(corpus_file, tiny, alone, tmp_path):
    settings = tiny(mixer="hybrid", num_hidden_layers=2, ngram_heads=(1,), micro_batch_tokens=128)
    assert finish(*start_group(corpus_file, tmp_path / "out", settings, number=2)) == [0, 0]
    assert_close_to(tmp_path / "out", alone(settings))


def test_rows_that_do_not_divide_over_the_processes_are_refused(corpus_file, tiny, tmp_path, monkeypatch):
    import torch

    three = Processes(rank=0, number=3, device=torch.device("cpu"))
    monkeypatch.setattr(Processes, "join", lambda: three)
    monkeypatch.setattr(Processes, "leave", lambda _: None)
    with pytest.raises(PerplabError, match=r"batch_tokens 512 .* 3 processes: give a multiple of 192"):
        train(corpus_file, tmp_path / "out", tiny())
