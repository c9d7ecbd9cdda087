"""Low-rank methods under `perplab train`: what is resumed, what is published, what is told."""

import json
import signal
from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from perplab.errors import PerplabError
from perplab.kernels import softmax_gradient
from perplab.models import load
from perplab.models.stock import to_decoder
from perplab.training import heldout_bits_per_byte, train
from perplab.training.data import Splits, heldout_blocks
from perplab.training.distribution import Processes
from runs_in_processes import InterruptAfter, KillAtRename, finish, start

METHODS = ["lora", "relora", "galore", "sst"]


@pytest.fixture
def settings(tiny):
    """`settings(method)`: twelve steps in iterations of four, two of them a round."""
    low_rank = {"rank": 4, "iteration_steps": 4, "iteration_warmup": 2, "iterations_per_round": 2}
    return lambda method, **changes: tiny(**({"method": method} | low_rank | changes))


@pytest.fixture
def run(corpus_file, tmp_path):
    def into(config, name="out"):
        train(corpus_file, tmp_path / name, config, progress=False)
        return tmp_path / name

    return into


def records(out):
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [record["loss"] for record in records(out) if "loss" in record]


def checkpoint(out):
    with safe_open(out / "run" / "checkpoint" / "state.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def assert_same_run(out, whole):
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(out) == losses(whole)
    ours, theirs = checkpoint(out), checkpoint(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("method", "step"),  # within an iteration, and between two rounds
    [("sst", 3), ("sst", 8), ("lora", 8), ("relora", 8), ("galore", 8)],
)
def test_interrupted_run_continues_to_the_same_bytes(corpus_file, settings, tmp_path, method, step):
    """Weights, moments and trained directions alike."""
    config = settings(method)
    assert finish(start(corpus_file, tmp_path / "out", config, prepare=InterruptAfter(step))) == [0]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert finish(start(corpus_file, tmp_path / "out", config)) == [0]
    assert finish(start(corpus_file, tmp_path / "whole", config)) == [0]
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    names = {name.rpartition(".")[2] for name in checkpoint(tmp_path / "out")}
    assert {"lora": "down", "relora": "down", "galore": "basis", "sst": "active"}[method] in names


def test_killed_run_continues_to_the_same_bytes(corpus_file, settings, tmp_path):
    config = settings("sst", checkpoint_every=1)
    killed = start(corpus_file, tmp_path / "out", config, prepare=KillAtRename(25))
    assert finish(killed) == [-signal.SIGKILL]
    assert 0 < len(losses(tmp_path / "out")) < 12
    assert finish(start(corpus_file, tmp_path / "out", config)) == [0]
    assert finish(start(corpus_file, tmp_path / "whole", config)) == [0]
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_run_learns_and_publishes_a_plain_llama_that_costs_what_was_measured(run, settings, corpus_file, method):
    out = run(settings(method, tokens=40 * 512))
    assert losses(out)[-1] < 0.8 * losses(out)[0]
    published = load(out)
    assert isinstance(published.model, LlamaForCausalLM)
    figures = published.lineage.figures
    assert figures["trained_parameters"] < figures["parameters"] == published.model.num_parameters()
    measured = heldout_bits_per_byte(
        to_decoder(published.model),
        heldout_blocks(Splits.of(corpus_file, None).heldout, published.tokenizer, 64, progress=False),
        tokens=8 * 256,
        rows=8,
        precision=nullcontext(),
        chunk_step=softmax_gradient,
        processes=Processes(rank=0, number=1, device=torch.device("cpu")),
    )
    assert measured == pytest.approx(records(out)[-1]["heldout_bits_per_byte"], rel=1e-5)


def test_warm_up_of_an_iteration_multiplies_the_schedule(run, settings):
    plain, anew = (run(settings(method, schedule="cosine"), method) for method in ("full", "sst"))
    rates = [[r["learning_rate"] for r in records(out) if "loss" in r] for out in (plain, anew)]
    factors = [after / before for before, after in zip(*rates, strict=True)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.5, 1, 1, 1, 0.5, 1, 1, 1])


@pytest.mark.parametrize("method", ["galore", "sst"])
def test_losses_do_not_depend_on_how_a_step_is_split_into_passes(run, settings, method):
    whole, parts = (run(settings(method, micro_batch_tokens=n), f"{n}") for n in (512, 128))
    assert losses(parts) == pytest.approx(losses(whole), abs=2e-3)


def test_several_processes_are_refused(corpus_file, settings, tmp_path, monkeypatch):
    two = Processes(rank=0, number=2, device=torch.device("cpu"))
    monkeypatch.setattr(Processes, "join", lambda: two)
    monkeypatch.setattr(Processes, "leave", lambda _: None)
    with pytest.raises(PerplabError, match="method sst trains in one process, and here are 2"):
        train(corpus_file, tmp_path / "out", settings("sst"))


def test_continuing_with_another_method_is_refused(run, settings):
    run(settings("lora"))
    with pytest.raises(PerplabError, match="method: lora, now sst"):
        run(settings("sst"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_run_learns_what_the_plain_one_learns(run, settings, method):
    plain, compiled = (run(settings(method, compile=flag), str(flag)) for flag in (False, True))
    assert losses(compiled) == pytest.approx(losses(plain), abs=2e-3)
