"""Masked diffusion in the trainer: what its objective costs, and runs from text to a model that fills in."""

import json
import signal
from pathlib import Path

import pytest
import torch

from perplab.kernels import softmax_gradient
from perplab.models import load
from perplab.models.diffusion import AbsorbingDiffusion, DiffusionModel, ao_bound
from perplab.models.generation import GenerateConfig, fill_blanks
from perplab.scoring.perplexity import perplexity
from perplab.training import TrainConfig, TrainingInterrupted, train
from perplab.training.diffusion_objective import DiffusionObjective, diffusion_config
from perplab.training.objective import EVALUATION

VOCABULARY = 20
LOSSES = ["ao", "lambda-dce", "t-dce", "dse"]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffusionModel(diffusion_config(TrainConfig(depth=1), VOCABULARY, 0)).double().eval()
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return model


def packed_rows():
    """Two rows of twelve: documents of seven and five tokens, and one of nine with the rest unfilled."""
    labels = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    labels[1, 9:] = -100
    position_ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0]])
    return labels, position_ids


def costs(model, labels, position_ids, *, loss="ao", seed=0, step=0, micro_batch=0):
    found = DiffusionObjective(loss, seed).costs(
        model,
        labels.clamp(min=0),
        position_ids,
        labels,
        step=step,
        micro_batch=micro_batch,
        z_loss=0.0,
        chunk_step=softmax_gradient,
    )
    torch.testing.assert_close(found.loss.double(), found.nll.double().sum(), rtol=1e-5, atol=1e-4)
    return found.nll.view_as(labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_cost_of_packed_rows_is_the_bound_of_each_document(model, loss):
    labels, position_ids = packed_rows()
    with torch.no_grad():
        found = [costs(model, labels, position_ids, loss=loss, step=step).sum(-1) for step in range(600)]
    found = torch.stack(found)
    documents = [(0, slice(0, 7)), (0, slice(7, 12)), (1, slice(0, 9))]
    bounds = [
        ao_bound(AbsorbingDiffusion(model), labels[row : row + 1, part], 2000, torch.Generator().manual_seed(0))
        for row, part in documents
    ]
    nats = [float(bound.token_nats.sum()) for bound in bounds]
    for row, expected in enumerate((nats[0] + nats[1], nats[2])):
        error = float(found[:, row].std()) / len(found) ** 0.5
        assert float(found[:, row].mean()) == pytest.approx(expected, abs=4 * error + 0.005 * expected)


def test_what_is_hidden_follows_from_seed_step_and_pass_alone(model):
    rows = packed_rows()
    first = costs(model, *rows, seed=3, step=7, micro_batch=2)
    assert torch.equal(first, costs(model, *rows, seed=3, step=7, micro_batch=2))
    for other in ({"seed": 4}, {"step": 8}, {"micro_batch": 3}, {"step": 3, "micro_batch": 7}):
        assert not torch.equal(first, costs(model, *rows, **({"seed": 3, "step": 7, "micro_batch": 2} | other)))


def test_unfilled_places_cost_nothing_and_documents_do_not_see_each_other(model):
    labels, position_ids = packed_rows()
    changed = labels.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % VOCABULARY
    before, after = (costs(model, part, position_ids, step=EVALUATION) for part in (labels, changed))
    assert (before[1, 9:] == 0).all()
    torch.testing.assert_close(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


def test_evaluation_takes_the_same_bound_whatever_is_trained_with(model):
    rows = packed_rows()
    first, *others = (costs(model, *rows, loss=loss, step=EVALUATION) for loss in LOSSES)
    assert all(torch.equal(first, other) for other in others)
    assert int((first > 0).sum()) > int((costs(model, *rows) > 0).sum())


@pytest.fixture
def run(corpus_file, tmp_path):
    def into(config, name="out"):
        train(corpus_file, tmp_path / name, config, progress=False)
        return tmp_path / name

    return into


def test_a_run_learns_and_leaves_a_model_that_is_bounded_and_fills_in(run, tiny, corpus_file):
    out = run(tiny(model="diffusion", tokens=60 * 512, ema=0.9))
    records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    bits = [record["heldout_bits_per_byte"]["all"] for record in records if "heldout_bits_per_byte" in record]
    assert bits[-1] < 0.8 * bits[0]
    made = load(out)
    assert isinstance(made.model, DiffusionModel)
    found = perplexity(made, json.loads(Path(corpus_file).read_text().splitlines()[0])["text"])
    assert found.is_upper_bound
    assert found.value < 0.5 * made.model.config.vocab_size
    assert fill_blanks(made, "the cat", GenerateConfig(max_new_tokens=8)).tokens == 8


@pytest.mark.parametrize("step", [1, 6])
def test_an_interrupted_run_goes_on_to_the_same_bytes(run, tiny, monkeypatch, step):
    from perplab.training.metrics import MetricsLog

    config = tiny(model="diffusion", loss="lambda-dce")
    whole = run(config, "whole")
    write = MetricsLog.write

    def write_and_interrupt(log, current, **values):
        write(log, current, **values)
        if current == step and "loss" in values:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as context:
        context.setattr(MetricsLog, "write", write_and_interrupt)
        with pytest.raises(TrainingInterrupted):
            run(config)
    out = run(config)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
