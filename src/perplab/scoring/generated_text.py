"""How good generated text is: what a judge says of it, and how varied it is, which only together say anything.

A sampler that repeats itself has a low generative perplexity. So the entropy of the tokens that each text uses stands
beside it, and both come from one call.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.text_scores import score
from perplab.text import Document


class TextQuality(NamedTuple):
    """What generated texts are like."""

    perplexity: float
    """Generative perplexity: of the texts under the judge."""
    unigram_entropy: float
    """Mean over texts of the entropy of the judge's tokens in each, in bits; see `unigram_entropy`."""


def judge_texts(judge: LanguageModel, texts: Sequence[str]) -> TextQuality:
    """Judge generated texts.

    Args:
        judge: a causal language model, better than the one that wrote them.
        texts: what was generated.

    Raises:
        PerplabError: the judge is a masked model, or there is no token to judge.
    """
    if not any(texts):
        raise PerplabError("there is no generated text to judge", "give at least one text that is not empty")
    documents = [Document(text, "generated", f"text {index}") for index, text in enumerate(texts)]
    scores = score(judge, documents, convention="perplab")
    owner, ids = (scores.tokens[column].to_numpy() for column in ("document", "token_id"))
    entropies = [
        float(unigram_entropy(torch.from_numpy(ids[owner == index])[None]))
        for index in range(len(texts))
        if (owner == index).any()
    ]
    return TextQuality(scores.perplexity, sum(entropies) / len(entropies))


def unigram_entropy(ids: Tensor) -> Tensor:
    """Entropy of how often each token comes in a sequence.

    Args:
        ids: (batch, length).

    Returns:
        (batch,) bits: 0 for one token repeated, log2(length) where none comes twice.
    """
    entropies = []
    for sequence in ids:
        share = torch.unique(sequence, return_counts=True)[1].double() / len(sequence)
        entropies.append(-(share * share.log2()).sum())
    return torch.stack(entropies)
