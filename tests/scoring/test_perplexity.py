"""Averages and intervals of token scores, against sums written out."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring import TokenScores, score
from perplab.scoring.bootstrap import bootstrap_ratio
from perplab.scoring.conventions import CONVENTIONS
from perplab.scoring.perplexity import perplexity, summary
from perplab.text import Document


def scores_of(windows, *, convention="perplab", sizes=None, words=None, document_bytes=None, window=8, stride=8):
    """Scores with the given costs. `windows` is, for each document, for each of its windows, a list of nats."""
    rows = [
        (document, number, cost)
        for number, (document, costs) in enumerate((d, costs) for d, parts in enumerate(windows) for costs in parts)
        for cost in costs
    ]
    document, number, cost = zip(*rows, strict=True) if rows else ((), (), ())
    sizes = np.ones(len(rows), dtype=np.int64) if sizes is None else np.array(sizes)
    ends = np.cumsum(sizes)
    of_documents = np.bincount(document, sizes, len(windows)).astype(int) if rows else np.zeros(len(windows), int)
    tokens = pa.table(
        {
            "document": pa.array(document, pa.int32()),
            "position": pa.array(range(len(rows)), pa.int32()),
            "token_id": pa.array([1] * len(rows), pa.int32()),
            "start": pa.array(ends - sizes, pa.int64()),
            "end": pa.array(ends, pa.int64()),
            "window": pa.array(number, pa.int32()),
            "nll": pa.array(cost, pa.float32()),
        }
    )
    documents = pa.table(
        {
            "name": [str(index) for index in range(len(windows))],
            "domain": ["d"] * len(windows),
            "bytes": pa.array(of_documents if document_bytes is None else document_bytes, pa.int64()),
            "words": pa.array([1] * len(windows) if words is None else words, pa.int64()),
        }
    )
    return TokenScores(tokens, documents, {"convention": convention, "window": window, "stride": stride})


nats = st.lists(st.floats(0, 8, width=32), min_size=1, max_size=6)
documents = st.lists(st.lists(nats, min_size=1, max_size=3), min_size=1, max_size=5)


@given(documents)
def test_a_token_perplexity_is_the_exponentiated_mean_cost(windows):
    found = perplexity(scores_of(windows), resamples=100)
    costs = [cost for document in windows for window in document for cost in window]
    assert found.value == found.token_perplexity == pytest.approx(math.exp(sum(costs) / len(costs)))
    assert (found.unit, found.num_tokens, found.num_documents) == ("token perplexity", len(costs), len(windows))
    assert found.nats == pytest.approx(sum(costs))


@given(documents)
def test_gptq_takes_the_mean_of_window_means(windows):
    found = perplexity(scores_of(windows, convention="gptq"), resamples=100)
    means = [sum(window) / len(window) for document in windows for window in document]
    assert found.value == pytest.approx(math.exp(sum(means) / len(means)))


@given(st.lists(nats, min_size=1, max_size=4))
def test_hf_stride_weighs_overlapping_windows_after_the_first_with_one_token_less(windows):
    found = perplexity(scores_of([windows], convention="hf-stride", window=8, stride=4), resamples=100)
    weights = [len(windows[0]), *(len(window) - 1 for window in windows[1:])]
    total = sum(weight * sum(window) / len(window) for weight, window in zip(weights, windows, strict=True))
    assert found.value == pytest.approx(math.exp(total / sum(weights)))
    without_overlap = perplexity(scores_of([windows], convention="hf-stride"), resamples=100)
    assert without_overlap.value == pytest.approx(without_overlap.token_perplexity)


def test_bytes_and_words_are_those_of_the_whole_text_where_all_of_it_was_scored():
    scores = scores_of([[[1.0, 2.0]], [[3.0]]], convention="lm-eval", sizes=[3, 5, 4], words=[2, 3])
    found = perplexity(scores)
    assert found.value == found.word_perplexity == pytest.approx(math.exp(6 / 5))
    assert found.byte_perplexity == pytest.approx(math.exp(6 / 12))
    assert found.bits_per_byte == pytest.approx(6 / 12 / math.log(2))
    assert (found.unit, found.num_bytes) == ("word perplexity", 12)


def test_where_part_of_a_document_was_scored_its_words_count_in_proportion_to_the_bytes():
    scores = scores_of([[[2.0, 2.0]]], sizes=[5, 5], words=[8], document_bytes=[40])
    found = perplexity(scores)
    assert found.word_perplexity == pytest.approx(math.exp(4 / 2))
    assert (found.num_bytes, found.bits_per_byte) == (10, pytest.approx(4 / 10 / math.log(2)))


def test_an_empty_document_is_one_word_of_no_cost_as_in_lm_eval():
    scores = scores_of([[[3.0, 3.0]], []], convention="lm-eval", words=[2, 1])
    assert perplexity(scores).value == pytest.approx(math.exp(6 / 3))


def test_nanochat_gives_bits_over_the_bytes_that_were_scored():
    found = perplexity(scores_of([[[1.0, 2.0]]], convention="nanochat", sizes=[3, 1], document_bytes=[100]))
    assert (found.unit, found.value) == ("bits per byte", pytest.approx(3 / 4 / math.log(2)))
    assert found.value == found.bits_per_byte


def test_documents_are_the_clusters_of_the_interval():
    random = np.random.default_rng(0)
    windows = [[random.gamma(2, size=random.integers(1, 9)).tolist() for _ in range(2)] for _ in range(30)]
    found = perplexity(scores_of(windows), seed=3, level=0.9)
    sums = [sum(map(sum, document)) for document in windows]
    lengths = [sum(map(len, document)) for document in windows]
    expected = bootstrap_ratio(sums, lengths, seed=3, level=0.9, transform=math.exp)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found.interval.low < found.value < found.interval.high
    assert found.bits_per_byte_interval.low < found.bits_per_byte < found.bits_per_byte_interval.high


def test_windows_are_the_clusters_where_documents_were_joined():
    windows = [[[1.0, 2.0, 1.5], [2.0, 2.5], [0.5, 1.0]]]
    joined = perplexity(scores_of(windows, convention="llamacpp"))
    assert joined.interval is not None
    assert joined.interval == perplexity(scores_of([[window] for window in windows[0]])).interval


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_cluster_gives_no_interval(convention):
    found = perplexity(scores_of([[[1.0, 2.0]]], convention=convention))
    assert (found.interval, found.bits_per_byte_interval) == (None, None)


def test_no_token_is_refused():
    with pytest.raises(PerplabError, match="no token to take a perplexity of"):
        perplexity(scores_of([[]]))


def test_scores_of_an_unknown_convention_are_refused():
    with pytest.raises(PerplabError, match="unknown convention 'mine'"):
        perplexity(scores_of([[[1.0]]], convention="mine"))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_text_and_its_scores_give_the_same_perplexity(tiny_model, tiny_tokenizer, convention):
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    model.model.config.max_position_embeddings = 12
    text = [Document("the cat sat on the mat", "prose", "a"), Document("x = f(y)\n" * 2, "code", "b")]
    scores = score(model, text, convention=convention)
    found = perplexity(model, text, convention=convention)
    assert found == perplexity(scores) == summary(scores, CONVENTIONS[convention])
    assert found.convention == convention


def test_the_parts_of_domains_have_perplexities(tiny_model, tiny_tokenizer):
    text = [Document("the cat sat", "prose", "a"), Document("x = f(y)\n", "code", "b"), Document("mat", "prose", "c")]
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    parts = score(model, text).by_domain()
    assert perplexity(parts["code"]).nats == pytest.approx(perplexity(model, [text[1]]).nats, rel=1e-5)
    assert perplexity(parts["prose"]).num_documents == 2


def test_a_cost_that_no_float_can_exponentiate_is_infinite_and_null_in_json():
    found = perplexity(scores_of([[[400.0, 400.0]]]), resamples=100)
    assert found.word_perplexity == math.inf
    assert found.as_json()["word_perplexity"] is None
    assert found.as_json()["bits_per_byte"] == pytest.approx(400 / math.log(2))
