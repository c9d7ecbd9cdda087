import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.scoring import token_metrics as module
from perplab.scoring.token_metrics import TOKEN_METRICS, token_metrics


def metrics_of(logits, labels, metrics=TOKEN_METRICS):
    return token_metrics(logits, labels, lambda states: states, metrics, vocabulary_size=logits.shape[-1])


def by_definition(logits, label):
    """Every metric of one distribution, term by term in float64."""
    probabilities = [math.exp(logit) for logit in logits]
    probabilities = [probability / sum(probabilities) for probability in probabilities]
    at_least = [p for logit, p in zip(logits, probabilities, strict=True) if logit >= logits[label]]
    entropy = -sum(p * math.log(p) for p in probabilities)
    return {
        "nll": -math.log(probabilities[label]),
        "rank": len(at_least),
        "log_rank": math.log(len(at_least)),
        "entropy": entropy,
        "max_log_prob": math.log(max(probabilities)),
        "top_p": sum(at_least),
        "log_prob_variance": sum(p * (math.log(p) + entropy) ** 2 for p in probabilities),
        "top_token": logits.index(max(logits)),
    }


@given(
    st.lists(
        st.lists(st.integers(-24, 24).map(lambda quarter: quarter / 4), min_size=7, max_size=7), min_size=1, max_size=9
    ),
    st.integers(0, 6),
)
def test_metrics_are_what_they_are_defined_to_be(rows, label):
    found = metrics_of(torch.tensor(rows), torch.full((len(rows),), label))
    for index, row in enumerate(rows):
        for metric, value in by_definition(row, label).items():
            assert float(found[metric][index]) == pytest.approx(value, rel=2e-4, abs=2e-5), metric


def test_uniform_distribution_has_closed_forms():
    found = metrics_of(torch.zeros(3, 50), torch.tensor([0, 7, 49]))
    for metric, value in {"nll": math.log(50), "rank": 50, "entropy": math.log(50), "top_p": 1}.items():
        torch.testing.assert_close(found[metric].float(), torch.full((3,), float(value)))
    torch.testing.assert_close(found["log_prob_variance"], torch.zeros(3), atol=1e-6, rtol=0)


def test_tokens_without_probability_contribute_nothing():
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    found = metrics_of(logits, torch.tensor([1]))
    assert float(found["entropy"]) == pytest.approx(math.log(2))
    assert float(found["log_prob_variance"]) == pytest.approx(0, abs=1e-6)
    assert math.isinf(float(metrics_of(logits, torch.tensor([2]), ("nll",))["nll"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_show(dtype, monkeypatch):
    logits = torch.randn(37, 101, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(37)
    whole = metrics_of(logits, labels)
    monkeypatch.setattr(module, "HEAD_LOGITS", 12 * 101)
    monkeypatch.setattr(module, "METRIC_LOGITS", 5 * 101)
    for metric, values in metrics_of(logits, labels).items():
        assert torch.equal(values, whole[metric]), metric


def test_logits_exist_for_one_chunk_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "HEAD_LOGITS", 1000)
    seen = []
    states, weight = torch.randn(64, 8), torch.randn(100, 8)
    token_metrics(
        states, torch.zeros(64, dtype=torch.int64), lambda x: seen.append(len(x)) or x @ weight.T, vocabulary_size=100
    )
    assert max(seen) * 100 <= 1000
    assert sum(seen) == 64


def test_kinds_of_columns():
    found = metrics_of(torch.randn(4, 9), torch.arange(4))
    kinds = {metric: values.numpy().dtype for metric, values in found.items()}
    assert kinds.pop("rank") == kinds.pop("top_token") == np.int32
    assert set(kinds.values()) == {np.dtype(np.float32)}


def test_unknown_metric_is_refused_by_name():
    with pytest.raises(PerplabError, match="unknown token metric 'surprise'"):
        metrics_of(torch.zeros(1, 2), torch.tensor([0]), ("surprise",))
