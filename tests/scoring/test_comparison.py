"""Two models on one text: what must hold whatever the models are."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_texts import random_cuts, random_texts, scored

from perplab.errors import PerplabError
from perplab.scoring.alignment import align
from perplab.scoring.comparison import compare_scores
from perplab.scoring.passages import with_text
from perplab.scoring.token_classes import token_classifier
from perplab.scoring.token_scores import TokenScores
from perplab.text import Document, train_tokenizer


@pytest.fixture(scope="module")
def classifier():
    return token_classifier(train_tokenizer([Document("", "", "")], 257))


def cuts_of(texts, seed):
    random = np.random.default_rng(seed)
    return [random_cuts(random, len(text)) for text in texts]


def noisy(scores, seed=1, size=1.0):
    """The same tokens at other costs."""
    nll = scores.nll + size * np.random.default_rng(seed).random(len(scores.nll)).astype(np.float32)
    return TokenScores(scores.tokens.set_column(5, "nll", pa.array(nll)), scores.documents, scores.origin)


def shuffled(scores, seed):
    """The same scores, the documents read in another order."""
    order = np.random.default_rng(seed).permutation(scores.documents.num_rows)
    owner = scores.tokens["document"].to_numpy()
    parts = [scores.tokens.filter(owner == document) for document in order]
    tokens = pa.concat_tables(
        part.set_column(0, "document", pa.array(np.full(len(part), number), pa.int32()))
        for number, part in enumerate(parts)
    )
    return TokenScores(tokens, scores.documents.take(order), scores.origin)


TEXTS = random_texts(0)
FIRST = scored(TEXTS, cuts_of(TEXTS, 0))
OTHER_COSTS = [text + np.random.default_rng(9).integers(0, 2, len(text)) for text in TEXTS]


def test_the_helper_puts_costs_where_this_file_replaces_them():
    assert FIRST.tokens.column_names[5] == "nll"


def test_a_model_compared_with_itself_shows_no_difference(classifier):
    found = compare_scores(FIRST, FIRST, classifier=classifier, resamples=200)
    assert found.same_tokens
    assert found.first == found.second
    for difference in (found.bits_per_byte, found.nats_per_token):
        assert (difference.value, difference.interval.low, difference.interval.high) == (0, 0, 0)
        assert difference.p_value == 1
    assert (found.perplexity_ratio.value, found.perplexity_ratio.interval.high) == (1, 1)
    assert {row.change for table in (found.by_domain, found.by_position, found.by_token_class) for row in table} == {0}
    assert found.worst_passages == []


def test_swapping_the_models_negates_every_difference(classifier):
    there = compare_scores(FIRST, noisy(FIRST), classifier=classifier, resamples=200)
    back = compare_scores(noisy(FIRST), FIRST, classifier=classifier, resamples=200)
    assert back.bits_per_byte.value == -there.bits_per_byte.value
    assert back.bits_per_byte.interval.low == -there.bits_per_byte.interval.high
    assert back.bits_per_byte.p_value == there.bits_per_byte.p_value
    assert back.perplexity_ratio.value == pytest.approx(1 / there.perplexity_ratio.value)
    for table in ("by_domain", "by_position", "by_token_class"):
        rows = zip(getattr(there, table), getattr(back, table), strict=True)
        assert all(other.change == pytest.approx(-row.change) and other.first == row.second for row, other in rows)


def test_figures_are_differences_of_the_models_own_figures():
    second = noisy(FIRST)
    found = compare_scores(FIRST, second, resamples=200)
    assert found.first.bits_per_byte == pytest.approx(FIRST.bits_per_byte)
    assert found.second.perplexity == pytest.approx(second.perplexity)
    assert found.bits_per_byte.value == pytest.approx(second.bits_per_byte - FIRST.bits_per_byte)
    assert found.perplexity_ratio.value == pytest.approx(second.perplexity / FIRST.perplexity)
    interval = found.nats_per_token.interval
    assert found.perplexity_ratio.interval.low == pytest.approx(math.exp(interval.low))
    assert found.perplexity_ratio.interval.high == pytest.approx(math.exp(interval.high))


def test_a_cost_that_is_the_same_more_for_each_byte_is_known_without_doubt():
    dearer = scored([text + math.log(2) for text in TEXTS], cuts_of(TEXTS, 5))
    found = compare_scores(FIRST, dearer, resamples=200)
    assert found.bits_per_byte.value == pytest.approx(1, abs=1e-6)
    assert found.bits_per_byte.interval.low == pytest.approx(1, abs=1e-6)
    assert found.bits_per_byte.interval.high == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_equal_costs_of_the_bytes_give_no_difference_whatever_the_tokens(seed, other_seed):
    texts = random_texts(seed, number=4, longest=60)
    found = compare_scores(
        scored(texts, cuts_of(texts, seed)), scored(texts, cuts_of(texts, other_seed + 20_000)), resamples=100
    )
    assert found.bits_per_byte.value == 0
    assert found.bits_per_byte.p_value == 1
    assert {row.change for table in (found.by_domain, found.by_position) for row in table} == {0}


@given(st.integers(0, 10_000))
def test_what_is_shared_out_adds_up_in_every_document_and_between_common_boundaries(seed):
    texts = random_texts(seed, number=4, longest=60)
    others = [text[::-1] for text in texts]
    cuts, other_cuts = cuts_of(texts, seed), cuts_of(texts, seed + 1)
    aligned = align(scored(texts, cuts), scored(others, other_cuts))
    owner, end = (aligned.scores.tokens[column].to_numpy() for column in ("document", "end"))
    for document, (costs, ends, other_ends) in enumerate(zip(others, cuts, other_cuts, strict=True)):
        for boundary in set(ends) & set(other_ends):
            before = (owner == document) & (end <= boundary)
            assert aligned.second[before].sum() == pytest.approx(costs[:boundary].sum())
    assert aligned.second_tokens == sum(map(len, other_cuts))


@pytest.mark.parametrize("second", [noisy(FIRST), scored(OTHER_COSTS, cuts_of(TEXTS, 3))], ids=["same", "other"])
def test_tables_and_documents_add_up_to_the_change_of_the_whole(second, classifier):
    found = compare_scores(FIRST, second, classifier=classifier, resamples=100)
    change = second.nats - FIRST.nats
    for table in (found.by_domain, found.by_position, found.by_token_class):
        assert sum(row.change for row in table) == pytest.approx(change)
        assert sum(row.tokens for row in table) == len(FIRST.nll)
        assert sum(row.token_share for row in table) == pytest.approx(1)
        assert all(row.change == pytest.approx(row.tokens * (row.second - row.first)) for row in table)
    assert sum(found.documents["second_nats"].to_pylist()) == pytest.approx(second.nats)
    assert sum(found.documents["first_nats"].to_pylist()) == pytest.approx(FIRST.nats)


def test_the_order_in_which_documents_were_read_changes_nothing(classifier):
    second = scored(OTHER_COSTS, cuts_of(TEXTS, 3))
    found = compare_scores(FIRST, second, classifier=classifier, resamples=200)
    again = compare_scores(shuffled(FIRST, 1), shuffled(second, 2), classifier=classifier, resamples=200)
    assert again.bits_per_byte == found.bits_per_byte
    assert again.by_position == found.by_position
    assert again.by_token_class == found.by_token_class
    assert again.documents == found.documents
    assert again.worst_passages == found.worst_passages


def test_documents_of_one_name_are_told_apart_by_their_size():
    texts = random_texts(1, number=3)
    names = ["part", "part", "whole"]
    second = scored(texts, cuts_of(texts, 1), names=names)
    found = compare_scores(scored(texts, cuts_of(texts, 1), names=names), shuffled(second, 0), resamples=100)
    assert found.bits_per_byte.value == 0


def test_the_passage_that_got_dearer_is_found_with_its_text():
    texts = [np.ones(1000), np.ones(900), np.ones(800)]
    dearer = [text.copy() for text in texts]
    dearer[1][420:440] += 2
    cuts = [list(range(2, len(text) + 1, 2)) for text in texts]
    found = compare_scores(scored(texts, cuts), scored(dearer, cuts), passages=5, resamples=100)
    (worst,) = found.worst_passages
    assert (worst.document, worst.domain, worst.start, worst.end) == ("document 1", "prose", 400, 600)
    assert worst.change == pytest.approx(40)
    content = "é" * 450
    (told,) = with_text(
        found.worst_passages, [Document("a" * 1000, "x", "other"), Document(content, "x", "document 1")]
    )
    assert told.text == "é" * 100
    assert told.change == worst.change


def test_passages_come_worst_first_and_no_more_than_asked_for():
    texts = [np.ones(2000), np.ones(2000)]
    cuts = [list(range(4, 2001, 4))] * 2
    first = scored(texts, cuts)
    found = compare_scores(first, noisy(first), passages=3, resamples=100).worst_passages
    changes = [passage.change for passage in found]
    assert len(found) == 3
    assert changes == sorted(changes, reverse=True)
    every = compare_scores(first, noisy(first), passages=1000, resamples=100).worst_passages
    assert len(every) == 20
    assert sum(passage.change for passage in every) == pytest.approx(noisy(first).nats - first.nats)


@pytest.mark.parametrize(
    ("names", "sizes", "named"),
    [
        (["a", "b", "d"], (5, 6, 7), "c is missing in the second model's scores"),
        (["a", "b", "c"], (5, 9, 7), "b has 9 bytes and not 6 in the second model's scores"),
        (["a", "b"], (5, 6), "c is missing in the second model's scores"),
        (["a", "b", "c", "e"], (5, 6, 7, 8), "e is missing in the first model's scores"),
        (["a", "b", "c", "c"], (5, 6, 7, 7), "c is missing in the first"),
    ],
)
def test_the_first_document_that_differs_is_named(names, sizes, named):
    first = scored([np.ones(5), np.ones(6), np.ones(7)], [[5], [6], [7]], names=["a", "b", "c"])
    second = scored([np.ones(size) for size in sizes], [[size] for size in sizes], names=names)
    with pytest.raises(PerplabError, match=named):
        compare_scores(first, second)


def test_other_tokens_of_one_tokenizer_are_another_text():
    origin = {"tokenizer_fingerprint": "same"}
    texts = [np.ones(5), np.ones(6)]
    first = scored(texts, [[2, 5], [3, 6]], origin=origin)
    second = scored(texts, [[2, 5], [4, 6]], origin=origin)
    with pytest.raises(PerplabError, match="document 1 is another text"):
        compare_scores(first, second)


def test_models_with_other_tokens_are_not_compared_where_bytes_are_not_scored():
    texts = [np.ones(5), np.ones(6)]
    first = scored(texts, [[2, 5], [3, 6]])
    with pytest.raises(PerplabError, match="4 of the 6 bytes of document 1 are scored"):
        compare_scores(first, scored(texts, [[5], [2, 4]]))


def test_bits_are_told_for_the_bytes_that_both_models_scored():
    texts = [np.ones(8), np.ones(6)]
    half = scored(texts, [[2, 4], [1, 3]])
    found = compare_scores(half, noisy(half), resamples=100)
    assert found.first.bits_per_byte == pytest.approx(1 / math.log(2))
    assert found.documents["bytes"].to_pylist() == [4, 3]


def test_scores_by_different_conventions_are_not_compared():
    texts = [np.ones(5), np.ones(6)]
    first, second = (scored(texts, [[5], [6]], origin={"convention": name}) for name in ("perplab", "lm-eval"))
    with pytest.raises(
        PerplabError, match="the first model is scored by the convention perplab, the second by lm-eval"
    ):
        compare_scores(first, second)


def test_one_document_is_refused():
    with pytest.raises(PerplabError, match="1 document:"):
        compare_scores(scored([np.ones(5)], [[5]]), scored([np.ones(5)], [[5]]))
