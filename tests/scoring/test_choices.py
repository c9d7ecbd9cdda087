"""Costs of choices against forward passes over whole texts."""

import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.choices import score_choices


@pytest.fixture(scope="module")
def language_model(tiny_model):
    """A tiny Llama with a tokenizer that joins letters across any border: `t`, `th` and `the` are tokens."""
    tokens = ["<eos>", *string.ascii_letters, "Ġ", "(", "th", "the", "(t"]
    merges = [("t", "h"), ("th", "e"), ("(", "t")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return LanguageModel(tiny_model("llama"), PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))


def cost_of_text(language_model, text):
    ids = torch.tensor([[0, *language_model.tokenizer.encode(text)]])
    with torch.no_grad():
        logits = language_model.model(ids[:, :-1], use_cache=False).logits[0].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()


@given(st.text("the( ", max_size=12), st.lists(st.text("the( ", min_size=1, max_size=6), min_size=2, max_size=4))
def test_choices_differ_by_as_much_as_the_whole_texts_do(language_model, context, choices):
    (found,) = score_choices(language_model, [(context, choices)])
    expected = np.array([cost_of_text(language_model, context + choice) for choice in choices])
    np.testing.assert_allclose(found.nll - found.nll[0], expected - expected[0], atol=1e-3)
    assert (found.nll <= expected + 1e-3).all()
    assert (found.num_tokens >= 1).all()


def test_a_choice_that_is_joined_to_the_context_is_scored_whole(language_model):
    (found,) = score_choices(language_model, [("go (", ["the", "to"])])
    # The texts end in the tokens "(", "the" and in "(t", "o": what they have in common ends before the bracket.
    np.testing.assert_array_equal(found.num_tokens, [2, 2])
    np.testing.assert_array_equal(found.num_bytes, [3, 2])
    np.testing.assert_allclose(found.nll_per_token, found.nll / 2)
    np.testing.assert_allclose(found.nll_per_byte, found.nll / [3, 2])


def test_without_a_context_the_whole_choice_is_scored_after_bos(language_model):
    (found,) = score_choices(language_model, [("", ["the", "cat sat"])])
    expected = [cost_of_text(language_model, text) for text in ("the", "cat sat")]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-4)


def test_a_long_stream_keeps_the_order_of_items_with_any_number_of_choices(language_model):
    items = [
        ("context " * (n % 3), [f"{letter} the" for letter in string.ascii_letters[: 1 + n % 5]]) for n in range(150)
    ]
    for (context, choices), found in zip(items, score_choices(language_model, iter(items)), strict=True):
        expected = next(score_choices(language_model, [(context, choices)]))
        np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-4)


def test_a_context_beyond_the_positions_loses_its_beginning_for_all_choices_alike(tiny_model, language_model):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 16
    short = LanguageModel(model, language_model.tokenizer)
    choices = ["cat", "dogs are"]
    (found,) = score_choices(short, [("abc " * 30, choices)])
    kept = language_model.tokenizer.encode("abc " * 30)[-(17 - 8) :]
    for choice, nll in zip(choices, found.nll, strict=True):
        ids = torch.tensor([[*kept, *language_model.tokenizer.encode(choice)]])
        with torch.no_grad():
            logits = model(ids[:, :-1], use_cache=False).logits[0, len(kept) - 1 :]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, len(kept) :], reduction="sum")
        assert nll == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("choices", [[], ["a", ""]])
def test_an_item_without_something_to_choose_is_refused(language_model, choices):
    with pytest.raises(PerplabError, match="empty or missing"):
        list(score_choices(language_model, [("context", choices)]))


def test_a_choice_longer_than_the_positions_is_refused(tiny_model, language_model):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 16
    with pytest.raises(PerplabError, match="choice of 17 tokens does not fit the model's 16 positions"):
        list(score_choices(LanguageModel(model, language_model.tokenizer), [("a", ["b" * 17])]))
