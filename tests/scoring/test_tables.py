"""Where the loss sits: kinds of tokens, and tables that add up."""

import numpy as np
import pytest
from scored_texts import random_cuts, random_texts, scored
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perplab.scoring.bootstrap import bootstrap_ratio
from perplab.scoring.tables import by_domain, by_position, by_token_class, loss_table
from perplab.scoring.token_classes import TOKEN_CLASSES, token_classifier
from perplab.text import Document, train_tokenizer


@pytest.fixture(scope="module")
def byte_tokenizer():
    return train_tokenizer([Document("", "", "")], 257)


@pytest.fixture(scope="module")
def merging_tokenizer():
    text = "the file name, the file name; return value_name(x1)\n    return the_name[22]\n" * 20
    return train_tokenizer([Document(text, "", "")], 320)


@pytest.fixture(scope="module")
def metaspace_tokenizer():
    tokens = ["</s>", "▁the", "▁", "re", "▁re", "7", "▁7", ".", "\n", "<0xC3>"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def classes_of(tokenizer, ids, documents=None):
    found = token_classifier(tokenizer).classes(np.array(ids), np.zeros(len(ids)) if documents is None else documents)
    return [TOKEN_CLASSES[index] for index in found]


def test_bytes_are_classed_by_what_they_print(byte_tokenizer):
    ids = byte_tokenizer.encode("ab 1,\né_c")
    assert classes_of(byte_tokenizer, ids) == [
        *("word start", "word continuation", "whitespace", "digit", "punctuation", "line end"),
        *("other", "other"),  # the two bytes of a letter
        *("punctuation", "word start"),
    ]


def test_a_letter_continues_a_word_only_behind_one_in_the_same_document(merging_tokenizer):
    ids = merging_tokenizer.encode("name")
    assert len(ids) == 1
    documents = np.array([0, 0, 1])
    found = classes_of(merging_tokenizer, ids * 3, documents)
    assert found == ["word start", "word continuation", "word start"]


def test_a_token_with_its_blank_or_sign_begins_a_word(merging_tokenizer):
    ids = merging_tokenizer.encode(" the file_name")
    pieces = [merging_tokenizer.decode([index]) for index in ids]
    assert pieces == [" the", " file", "_name"]
    assert classes_of(merging_tokenizer, ids) == ["word start"] * 3


def test_every_token_of_a_trained_vocabulary_is_classed_by_its_text(merging_tokenizer):
    ids = sorted(merging_tokenizer.get_vocab().values())
    for index, found in zip(ids, classes_of(merging_tokenizer, ids, np.arange(len(ids))), strict=True):
        text = merging_tokenizer.decode([index])
        if index in merging_tokenizer.all_special_ids or "\ufffd" in text:
            expected = {"other"}
        elif "\n" in text or "\r" in text:
            expected = {"line end"}
        elif not text.strip():
            expected = {"whitespace", "other"}
        elif text.isascii():
            letters = [character for character in text if character.isalnum()]
            kind = "digit" if letters and letters[0].isdigit() else "word start"
            expected = {kind if letters else "punctuation" if text.isprintable() else "other"}
        else:
            expected = set(TOKEN_CLASSES)
        assert found in expected, repr(text)


def test_blanks_of_metaspace_tokens_count_as_blanks(metaspace_tokenizer):
    assert classes_of(metaspace_tokenizer, range(10)) == [
        *("other", "word start", "whitespace", "word start", "word start", "digit", "digit"),
        *("punctuation", "line end", "other"),
    ]


@pytest.fixture
def scores(byte_tokenizer):
    random = np.random.default_rng(0)
    costs = random_texts(0, number=80)
    cuts = [random_cuts(random, len(document)) for document in costs]
    ids = [random.integers(0, 257, len(ends)) for ends in cuts]
    return scored(costs, cuts, token_ids=ids)


def test_each_table_adds_up_to_the_whole(scores, byte_tokenizer):
    groupings = by_domain(scores), by_position(scores), by_token_class(scores, token_classifier(byte_tokenizer))
    for grouping in groupings:
        rows = loss_table(scores, grouping, resamples=100)
        assert sum(row.tokens for row in rows) == len(scores.nll)
        assert sum(row.tokens * row.nats_per_token for row in rows) == pytest.approx(scores.nats)
        assert sum(row.token_share for row in rows) == pytest.approx(1)
        assert sum(row.loss_share for row in rows) == pytest.approx(1)


def test_a_row_is_the_mean_over_its_tokens_with_its_own_interval(scores):
    (row,) = (row for row in loss_table(scores, by_domain(scores), resamples=2000) if row.name == "code")
    part = scores.by_domain()["code"]
    assert row.nats_per_token == pytest.approx(part.nll.mean())
    owner = part.tokens["document"].to_numpy()
    alone = bootstrap_ratio(np.bincount(owner, part.nll), np.bincount(owner), resamples=2000)
    assert row.interval.low == pytest.approx(alone.low, rel=0.03)
    assert row.interval.high == pytest.approx(alone.high, rel=0.03)


def test_places_are_grouped_fourfold():
    tokens = 300
    scores = scored([np.ones(tokens)] * 2, [list(range(1, tokens + 1))] * 2)
    rows = loss_table(scores, by_position(scores), resamples=100)
    assert [(row.name, row.tokens) for row in rows] == [
        *(("0", 2), ("1-3", 6), ("4-15", 24), ("16-63", 96), ("64-255", 384), ("256-1023", 88)),
    ]


def test_a_group_of_one_document_has_no_interval():
    scores = scored([np.ones(5), np.ones(7), np.ones(9)], [[5], [7], [9]], domains=["a", "b", "b"])
    one, two = loss_table(scores, by_domain(scores), resamples=100)
    assert one.interval is None
    assert two.interval is not None


def test_one_document_has_a_table_without_intervals():
    scores = scored([np.ones(5)], [[1, 3, 5]])
    assert [row.interval for row in loss_table(scores, by_position(scores))] == [None, None]
