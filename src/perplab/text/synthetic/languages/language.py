"""What every language here can tell of itself: the exact probability of any symbol, after a prefix or in a gap.

Decisions:
- A language is two tables of joint log-probabilities: of every symbol after every prefix, log P(x_<t, v), and of every
  symbol in the place of every other, log P(x_-t, v). Conditionals, likelihoods and entropies follow from them, and both
  tables have to agree on the likelihood of a sentence.
- A batch of sentences is one array (sentences, length): where sentences of a language differ in length, the shorter
  ones are filled up with the language's end symbol, which follows itself with certainty.
- Entropies are nats a position. One that has no closed form is the mean over sampled sentences of the exact entropies
  of their conditionals, which varies far less than the mean of -log p where sentences have one length.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]
Context = Literal["masked", "causal"]
"""What a symbol is predicted from: all the other symbols of its sentence, or those before it."""

_SENTENCES_AT_ONCE = 512


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of a position.

    Attributes:
        value: nats a position.
        standard_error: of `value`; 0 where it is exact.
    """

    value: float
    standard_error: float


class Language(ABC):
    """A distribution over sentences of symbols 0 to `vocab_size` - 1.

    Args:
        vocab_size: symbols there are.
        length: of a sentence, or of the longest.
        end: symbol that fills up shorter sentences; None where all have one length.

    Raises:
        PerplabError: there is nothing to predict.
    """

    def __init__(self, vocab_size: int, length: int, end: int | None = None) -> None:
        if vocab_size < 2:
            raise PerplabError(f"a vocabulary of {vocab_size}", "give two symbols or more: one alone costs nothing")
        if length < 2:
            raise PerplabError(f"sentences of {length} symbols", "give a length of two or more")
        self.vocab_size = vocab_size
        self.length = length
        self.end = end

    @abstractmethod
    def identity(self) -> str:
        """Text that two languages share just when they are the same."""

    @abstractmethod
    def draw(self, n: int, random: np.random.Generator) -> Ids:
        """Sentences (n, length) from a generator."""

    @abstractmethod
    def hidden_labels(self, ids: Ids) -> Ids:
        """What a model of the language is expected to know without being told, (n, tasks)."""

    @abstractmethod
    def _after_prefix(self, ids: Ids) -> Floats:
        """Log P(x_<t, v) of valid sentences, (n, length, vocab_size)."""

    @abstractmethod
    def _in_context(self, ids: Ids) -> Floats:
        """Log P(x_-t, v) of valid sentences, (n, length, vocab_size)."""

    def sample(self, n: int, seed: int) -> Ids:
        """Sentences (n, length)."""
        return self.draw(n, np.random.default_rng(seed))

    def next_token(self, ids: npt.ArrayLike) -> Floats:
        """Causal log-probabilities (n, length, vocab_size): at t, of the symbols at t given those before t.

        Raises:
            PerplabError: there is no such symbol, or a sentence begins as none of the language does.
        """
        return _conditioned(self._after_prefix(self.checked(ids)))

    def masked_token(self, ids: npt.ArrayLike) -> Floats:
        """Masked log-probabilities (n, length, vocab_size): at t, of the symbols at t given all others.

        Raises:
            PerplabError: there is no such symbol, or a sentence is impossible.
        """
        return _conditioned(self._in_context(self.checked(ids)))

    def conditional(self, ids: npt.ArrayLike, position: int) -> Floats:
        """Masked log-probabilities (n, vocab_size) at one position, whatever stands there.

        Raises:
            PerplabError: there is no such symbol, or no symbol at the position makes a sentence possible.
        """
        return _conditioned(self._in_context(self.checked(ids))[:, [position]])[:, 0]

    def log_likelihood(self, ids: npt.ArrayLike) -> Floats:
        """Log P of each sentence, (n,); -inf for an impossible one."""
        checked = self.checked(ids)
        return np.take_along_axis(self._after_prefix(checked)[:, -1], checked[:, -1:], axis=1)[:, 0]

    def entropy(self, context: Context, *, sentences: int = 4096, seed: int = 0) -> Entropy:
        """Nats a position that no model can go below.

        Args:
            context: what a symbol is predicted from.
            sentences: to sample where there is no closed form.
            seed: of the sample.

        Raises:
            PerplabError: fewer than two sentences are asked for.
        """
        if sentences < 2:
            raise PerplabError(f"an entropy from {sentences} sentences", "sample two or more")
        ids = self.sample(sentences, seed)
        of = {"masked": self.masked_token, "causal": self.next_token}[context]
        batches = (of(ids[start : start + _SENTENCES_AT_ONCE]) for start in range(0, sentences, _SENTENCES_AT_ONCE))
        means = np.concatenate([entropies(batch).mean(axis=1) for batch in batches])
        return Entropy(float(means.mean()), float(means.std(ddof=1) / sentences**0.5))

    def checked(self, ids: npt.ArrayLike) -> Ids:
        """The sentences as an array (n, length).

        Raises:
            PerplabError: they are not sentences of this length, or a symbol is none of the vocabulary.
        """
        sentences = np.asarray(ids, dtype=np.int64)
        if sentences.ndim != 2 or sentences.shape[1] != self.length:
            raise PerplabError(f"sentences of shape {sentences.shape}", f"give (sentences, {self.length}) symbols")
        if sentences.size and not 0 <= sentences.min() <= sentences.max() < self.vocab_size:
            raise PerplabError(
                f"symbols from {sentences.min()} to {sentences.max()}", f"give symbols from 0 to {self.vocab_size - 1}"
            )
        return sentences


def entropies(log_probabilities: Floats) -> Floats:
    """Entropy in nats of distributions over the last axis."""
    return -(np.exp(log_probabilities) * np.where(np.isneginf(log_probabilities), 0.0, log_probabilities)).sum(axis=-1)


def log_sum(weights: Floats) -> Floats:
    """Log of the sum of exp over the last axis, which stays; -inf where all are."""
    highest = weights.max(axis=-1, keepdims=True)
    shift = np.where(np.isneginf(highest), 0.0, highest)
    return log(np.exp(weights - shift).sum(axis=-1, keepdims=True)) + shift


def log_product(weights: Floats, matrix: Floats) -> Floats:
    """log(exp(weights) @ matrix) for weights (..., k) and a matrix (k, m) of probabilities."""
    highest = weights.max(axis=-1, keepdims=True)
    shift = np.where(np.isneginf(highest), 0.0, highest)
    return log(np.exp(weights - shift) @ matrix) + shift


def log(probabilities: Floats) -> Floats:
    """Logarithm without a warning where a probability is 0."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def digest(*arrays: Floats) -> str:
    """Hexadecimal digest of arrays."""
    hashed = blake2b(digest_size=16)
    for array in arrays:
        hashed.update(f"{array.shape}".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def drawn(table: Floats, rows: Ids, random: np.random.Generator) -> Ids:
    """One index for each entry of `rows` (n,), drawn in proportion to that row of a table (rows, k)."""
    cumulated = table.cumsum(axis=1)
    cumulated /= cumulated[:, -1:]
    chances = random.integers(2**32, size=len(rows)) / 2**32  # so many bits that adding a row's number rounds nothing
    ends = (cumulated + np.arange(len(table))[:, None]).ravel()
    return np.searchsorted(ends, rows + chances, side="right") - rows * table.shape[1]


def _conditioned(joint: Floats) -> Floats:
    total = log_sum(joint)
    impossible = np.argwhere(np.isneginf(total[..., 0]))
    if len(impossible):
        sentence, position = impossible[0]
        raise PerplabError(
            f"sentence {sentence} has probability 0 around position {position}", "give sentences of the language"
        )
    return joint - total
