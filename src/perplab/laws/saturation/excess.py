"""How far a model is above the least loss its language allows.

The excess is the mean divergence from the exact distribution of the next symbol to the model's: cross-entropy against
exact probabilities less their own entropy, on the same sentences. Sampled labels would add noise a hundred times as
large, and two models could not be told to cost the same. It cannot be negative.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import Interval
from perplab.text.synthetic.languages import Language

_LEVEL = 0.95
_SENTENCES_AT_ONCE = 256


@dataclass(frozen=True)
class Excess:
    """Loss above the entropy of the language.

    Attributes:
        value: nats a predicted symbol.
        standard_error: of the value, over sentences.
        interval: of the value, at 95 %.
    """

    value: float
    standard_error: float
    interval: Interval


@torch.no_grad()
def excess_loss(model: PreTrainedModel, language: Language, *, sentences: int = 1024, seed: int = 0) -> Excess:
    """Measure a causal model on fresh sentences, where every symbol but the first is predicted.

    Args:
        model: its first `language.vocab_size` tokens are the language's symbols.
        language: what it should have learnt.
        sentences: to measure on.
        seed: of the sentences.

    Raises:
        PerplabError: the model has fewer tokens than the language symbols, or there are fewer than two sentences.
    """
    check_vocabulary(model, language)
    if sentences < 2:
        raise PerplabError(f"an excess loss on {sentences} sentences", "measure two or more")
    training = model.training
    model.eval()
    means = []
    ids = language.sample(sentences, seed)
    for start in range(0, sentences, _SENTENCES_AT_ONCE):
        batch = ids[start : start + _SENTENCES_AT_ONCE]
        exact = torch.from_numpy(language.next_token(batch)[:, 1:])
        found = next_log_probabilities(model, torch.from_numpy(batch))[..., : language.vocab_size].double().cpu()
        divergence = torch.where(exact.isneginf(), 0.0, exact.exp() * (exact - found)).sum(dim=-1)
        means.append(divergence.mean(dim=1).numpy())
    model.train(training)
    values = np.concatenate(means)
    mean, error = float(values.mean()), float(values.std(ddof=1) / sentences**0.5)
    reach = float(student.ppf((1 + _LEVEL) / 2, sentences - 1)) * error
    return Excess(mean, error, Interval(mean - reach, mean + reach, _LEVEL))


def next_log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probabilities (n, length - 1, vocabulary) of what follows each symbol of sentences (n, length)."""
    logits = model(input_ids=ids[:, :-1].to(model.device), use_cache=False).logits
    return torch.log_softmax(logits.float(), dim=-1)


def check_vocabulary(model: PreTrainedModel, language: Language) -> None:
    """Refuse a model that cannot say all symbols.

    Raises:
        PerplabError: it has too few tokens.
    """
    if model.config.vocab_size < language.vocab_size:
        raise PerplabError(
            f"a model of {model.config.vocab_size} tokens for a language of {language.vocab_size} symbols",
            "give the model a token for each symbol",
        )
