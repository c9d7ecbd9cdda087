"""Generative perplexity and unigram entropy."""

import math

import pytest
import torch

from perplab.errors import PerplabError
from perplab.models import load
from perplab.scoring import score
from perplab.scoring.generated_text import judge_texts, unigram_entropy
from perplab.text import Document


def test_entropy_is_that_of_the_counts():
    ids = torch.tensor([[5, 5, 5, 5], [1, 2, 3, 4], [1, 1, 1, 2]])
    expected = torch.tensor([0.0, 2.0, 0.75 * math.log2(4 / 3) + 0.25 * 2], dtype=torch.float64)
    torch.testing.assert_close(unigram_entropy(ids), expected)


def test_a_text_that_repeats_itself_is_cheap_and_its_entropy_says_so():
    judge = load("pocket")
    varied = judge_texts(judge, ["def area(width, height):\n    return width * height\n", "the value of a name"])
    repeated = judge_texts(judge, ["0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0"])
    assert repeated.perplexity < varied.perplexity
    assert repeated.unigram_entropy < varied.unigram_entropy


def test_perplexity_is_the_judge_s_and_an_empty_text_has_none():
    judge, texts = load("pocket"), ["import os\n", ""]
    documents = [Document(text, "generated", text) for text in texts]
    assert judge_texts(judge, texts).perplexity == pytest.approx(score(judge, documents).perplexity)
    with pytest.raises(PerplabError, match="no generated text"):
        judge_texts(judge, ["", ""])
