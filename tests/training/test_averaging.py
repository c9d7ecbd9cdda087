import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from perplab.errors import PerplabError
from perplab.training import TrainingInterrupted, train
from perplab.training.averaging import WeightAverage


def test_average_is_the_sum_of_all_weights_by_their_decayed_shares():
    model = nn.Linear(1, 1, bias=False)
    values = [3.0, -1.0, 4.0, 1.5, -9.0]
    nn.init.constant_(model.weight, values[0])
    average, expected = WeightAverage(model, 0.25), values[0]
    for step, value in enumerate(values[1:]):
        nn.init.constant_(model.weight, value)
        average.update(step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == values[-1]


def test_average_of_weights_that_stand_still_is_these_weights():
    model = nn.Linear(3, 3)
    average = WeightAverage(model, 0.9)
    for step in range(5):
        average.update(step)
    before = model.weight.clone()
    with average.in_place():
        torch.testing.assert_close(model.weight, before)


def test_without_decay_nothing_is_kept_and_nothing_changes():
    model = nn.Linear(3, 3)
    average = WeightAverage(model, 0.0)
    nn.init.ones_(model.weight)
    average.update(0)
    with average.in_place():
        assert bool((model.weight == 1).all())


def test_average_is_what_a_run_measures_and_saves(tmp_path, corpus_file, tiny):
    train(corpus_file, tmp_path / "plain", tiny(), progress=False)
    train(corpus_file, tmp_path / "averaged", tiny(ema=0.9), progress=False)
    plain, averaged = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "averaged"))
    checkpoint = load_file(tmp_path / "averaged" / "run" / "checkpoint" / "state.safetensors")
    name = "model.norm.weight"
    torch.testing.assert_close(checkpoint[f"model.{name}"], plain[name], rtol=0, atol=0)
    torch.testing.assert_close(checkpoint[f"average.{name}"], averaged[name], rtol=0, atol=0)
    assert not torch.equal(averaged[name], plain[name])


def test_run_with_an_average_goes_on_to_the_same_bytes(tmp_path, corpus_file, tiny, monkeypatch):
    from perplab.training.metrics import MetricsLog

    write = MetricsLog.write

    def write_and_interrupt(log, step, **values):
        write(log, step, **values)
        if step == 7 and "loss" in values:
            raise KeyboardInterrupt

    train(corpus_file, tmp_path / "whole", tiny(ema=0.9), progress=False)
    monkeypatch.setattr(MetricsLog, "write", write_and_interrupt)
    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        train(corpus_file, tmp_path / "parts", tiny(ema=0.9), progress=False)
    monkeypatch.setattr(MetricsLog, "write", write)
    train(corpus_file, tmp_path / "parts", tiny(ema=0.9), progress=False)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    assert json.loads((tmp_path / "parts" / "run" / "checkpoint" / "state.json").read_text())["step"] == 12


@pytest.mark.parametrize("settings", [{"ema": 1.0}, {"ema": -0.1}, {"ema": 0.9, "method": "sst"}])
def test_averages_that_cannot_be_are_refused(tiny, settings):
    with pytest.raises(PerplabError, match=r"ema|average"):
        tiny(**settings)
