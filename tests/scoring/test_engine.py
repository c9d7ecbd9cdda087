"""Scores of any causal LM against plain forward passes."""

import math
import string

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.text import Document


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Byte-level tokens for letters and punctuation, within the vocabulary of every tiny model."""
    spelled = str.maketrans(" \n", "ĠĊ")  # how byte-level vocabularies write a space and a newline
    letters = (string.ascii_letters + string.punctuation[:20] + " \n").translate(spelled)
    tokens = ["<eos>", *letters, "th", "the"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def costs_of_plain_forward(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


def test_costs_of_every_family_equal_a_plain_forward_pass(family, tiny_model, byte_tokenizer):
    language_model = LanguageModel(tiny_model(family), byte_tokenizer)
    scores = score(language_model, "the cat\nsat there")
    ids = scores.tokens["token_id"].to_pylist()
    assert byte_tokenizer.decode(ids) == "the cat\nsat there"
    expected = costs_of_plain_forward(language_model.model, [0, *ids])
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-5)


def test_every_token_of_a_long_document_is_scored_once_from_its_own_window(tiny_model, byte_tokenizer):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 16
    text = "the quick brown fox jumps over the lazy dog, " * 3
    scores = score(LanguageModel(model, byte_tokenizer), text)
    ids = [0, *scores.tokens["token_id"].to_pylist()]
    expected, scored = [], 0
    while scored < len(ids) - 1:
        begin = max(0, scored - 8)
        end = min(len(ids) - 1, begin + 16)
        expected.extend(costs_of_plain_forward(model, ids[begin : end + 1])[scored - begin :])
        scored = end
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-5)


def test_byte_spans_tile_each_document(tiny_model, byte_tokenizer):
    documents = [Document("the then", "prose", "a"), Document("x(y)", "code", "b")]
    scores = score(LanguageModel(tiny_model("llama"), byte_tokenizer), documents)
    for index, document in enumerate(documents):
        rows = [row for row in scores.tokens.to_pylist() if row["document"] == index]
        assert [row["start"] for row in rows] == [0, *(row["end"] for row in rows[:-1])]
        assert rows[-1]["end"] == len(document.text)
        assert "".join(document.text[row["start"] : row["end"]] for row in rows) == document.text


def test_figures_are_the_sums_they_are_defined_by(tiny_model, byte_tokenizer):
    scores = score(LanguageModel(tiny_model("gpt2"), byte_tokenizer), "the end")
    nats = float(np.sum(scores.nll, dtype=np.float64))
    assert scores.perplexity == pytest.approx(math.exp(nats / len(scores.nll)))
    assert scores.bits_per_byte == pytest.approx(nats / math.log(2) / 7)


def test_domains_add_up_to_the_whole_and_equal_documents_scored_alone(tiny_model, byte_tokenizer):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    documents = [Document("abc", "x", "1"), Document("the", "y", "2"), Document("cab the", "x", "3")]
    scores = score(language_model, documents)
    parts = scores.by_domain()
    assert list(parts) == ["x", "y"]
    assert sum(part.nats for part in parts.values()) == pytest.approx(scores.nats)
    assert sum(part.num_bytes for part in parts.values()) == scores.num_bytes
    alone = score(language_model, [documents[0], documents[2]])
    assert parts["x"].tokens.equals(alone.tokens)


def test_nothing_to_score_is_refused(tiny_model, byte_tokenizer):
    with pytest.raises(PerplabError, match="no token to score"):
        score(LanguageModel(tiny_model("llama"), byte_tokenizer), "")


def test_costs_that_are_not_finite_are_refused_with_their_place(tiny_model, byte_tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(PerplabError, match="token 0 of here"):
        score(LanguageModel(model, byte_tokenizer), [Document("abc", "d", "here")])
