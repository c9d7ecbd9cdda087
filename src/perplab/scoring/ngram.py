"""An n-gram language model: interpolated Kneser-Ney smoothing with three discounts an order (Chen & Goodman 1998).

- Counts live in sorted arrays. Each context of an order has a dense id; an n-gram's key is its context's id times the
  vocabulary plus its token, so looking up is one binary search and the n-grams of a context lie side by side.
- A context's id is made from the id of the context one token shorter and the token to its left. The ids therefore say
  which context to back off to, and continuation counts are counted over the n-grams of the next order.
- What is stored is what scoring needs: the discounted share of every n-gram, and of every context the mass that the
  discounts set free for the order below. Below single tokens lies the uniform distribution over the vocabulary.
- Before a document stand bos tokens, as many as the order looks back. They are context and are never predicted.
- An order whose counts of counts give no discount in (0, 1) for a count of 1, (0, 2) for 2 and (0, 3) for 3 or more
  takes 0.5, 1 and 1.5. Every discount is then positive, so every context frees some mass and no cost is infinite.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError

_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)

_Ids = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class NGramModel:
    """A modified Kneser-Ney n-gram model on token ids.

    Args:
        vocabulary_size: token ids are 0 to `vocabulary_size` - 1.
        bos: the token that fills the context before a document.
        order: tokens in an n-gram, the predicted one among them.

    Attributes:
        orders_: one table an order, from single tokens to `order`; set by `fit`.

    Raises:
        PerplabError: the order is below 1.
    """

    def __init__(self, vocabulary_size: int, bos: int, order: int = 5) -> None:
        if order < 1:
            raise PerplabError(f"n-gram order {order} is not positive", "give 1 or more")
        self.vocabulary_size = vocabulary_size
        self.bos = bos
        self.order = order

    def fit(self, documents: Iterable[npt.NDArray[np.integer]]) -> "NGramModel":
        """Count n-grams.

        Args:
            documents: each one's predicted tokens in order, shape (tokens,): no bos, and an end-of-text token only
                where the model is to learn where documents end.

        Raises:
            PerplabError: there is no token, or one lies outside the vocabulary.
        """
        stream, predicted = self._padded(documents)
        if len(predicted) == 0:
            raise PerplabError("no token to count n-grams of", "give at least one document that is not empty")
        tokens = stream[predicted]
        contexts = np.zeros(len(tokens), dtype=np.int64)
        context_keys = np.zeros(1, dtype=np.int64)
        counted = []
        for order in range(1, self.order + 1):
            if order > 1:
                left = stream[predicted - (order - 1)]
                context_keys, contexts = np.unique(contexts * self.vocabulary_size + left, return_inverse=True)
            keys, counts = np.unique(contexts * self.vocabulary_size + tokens, return_counts=True)
            counted.append(_Counts(context_keys, keys, counts))
        for shorter, longer in pairwise(counted):
            shorter.counts = longer.continuations_of(shorter, self.vocabulary_size)
        self.orders_ = [counts.smoothed(self.vocabulary_size) for counts in counted]
        return self

    def nll(self, document: npt.NDArray[np.integer]) -> _Floats:
        """Cost of each token in nats, shape (tokens,), given the tokens before it in its document.

        Args:
            document: token ids, shape (tokens,), as for `fit`.

        Raises:
            PerplabError: a token lies outside the vocabulary.
        """
        stream, predicted = self._padded([document])
        tokens = stream[predicted]
        probability = np.full(len(tokens), 1.0 / self.vocabulary_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)
        known = np.arange(len(tokens))  # tokens whose context of this order was met in training
        for order, table in enumerate(self.orders_, start=1):
            if order > 1:
                left = stream[predicted[known] - (order - 1)]
                contexts, found = _find(table.context_keys, contexts * self.vocabulary_size + left)
                contexts, known = contexts[found], known[found]
            grams, found = _find(table.keys, contexts * self.vocabulary_size + tokens[known])
            share = np.where(found, table.share[grams], 0.0)
            probability[known] = share + table.freed[contexts] * probability[known]
        costs: _Floats = -np.log(probability)
        return costs

    def _padded(self, documents: Iterable[npt.NDArray[np.integer]]) -> tuple[_Ids, _Ids]:
        """All documents in one array, each after its bos tokens, and the indices of the tokens to predict."""
        padding = np.full(self.order - 1, self.bos)
        pieces = [padding]
        is_token = [np.zeros(self.order - 1, dtype=bool)]
        for document in documents:
            pieces += [document, padding]
            is_token += [np.ones(len(document), dtype=bool), np.zeros(self.order - 1, dtype=bool)]
        stream = np.concatenate(pieces, dtype=np.int64)
        if len(stream) and not 0 <= stream.min() <= stream.max() < self.vocabulary_size:
            raise PerplabError(
                f"token ids from {stream.min()} to {stream.max()} do not fit a vocabulary of {self.vocabulary_size}",
                "give the vocabulary size of the tokenizer that made them",
            )
        return stream, np.flatnonzero(np.concatenate(is_token))


@dataclass
class _Counts:
    """The n-grams of one order.

    Attributes:
        context_keys: ascending, by context id: (id of the context one token shorter) * vocabulary + leftmost token.
        keys: ascending, by n-gram: (context id) * vocabulary + token.
        counts: by n-gram; occurrences, or for an order below the highest the distinct tokens met to its left.
    """

    context_keys: _Ids
    keys: _Ids
    counts: _Ids

    def continuations_of(self, shorter: "_Counts", vocabulary_size: int) -> _Ids:
        """How many of these n-grams end in each n-gram of the order below."""
        contexts, tokens = np.divmod(self.keys, vocabulary_size)
        suffixes = self.context_keys[contexts] // vocabulary_size * vocabulary_size + tokens
        suffixes.sort()  # neighbours in memory are then searched for together
        return np.bincount(np.searchsorted(shorter.keys, suffixes), minlength=len(shorter.keys))

    def smoothed(self, vocabulary_size: int) -> "_Smoothed":
        """Discount the counts and divide them by their context's total."""
        contexts = self.keys // vocabulary_size
        totals = np.bincount(contexts, weights=self.counts)
        discount = np.array((0.0, *_discounts(self.counts)))[np.minimum(self.counts, 3)]
        freed = np.bincount(contexts, weights=discount) / totals
        return _Smoothed(self.context_keys, self.keys, (self.counts - discount) / totals[contexts], freed)


@dataclass(frozen=True)
class _Smoothed:
    """One order, ready to score: p(token | context) = share + freed * p(token | context one token shorter).

    Attributes:
        context_keys: as in `_Counts`.
        keys: as in `_Counts`.
        share: by n-gram.
        freed: by context.
    """

    context_keys: _Ids
    keys: _Ids
    share: _Floats
    freed: _Floats


def _discounts(counts: _Ids) -> tuple[float, float, float]:
    """What to take from counts of 1, of 2, and of 3 or more: the leave-one-out estimate from counts of counts."""
    once, twice, thrice, four_times = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if min(once, twice, thrice) == 0:
        return _FALLBACK_DISCOUNTS
    share = once / (once + 2 * twice)
    estimate = (
        1 - 2 * share * twice / once,
        2 - 3 * share * thrice / twice,
        3 - 4 * share * four_times / thrice,
    )
    sound = all(0 < discount < count for count, discount in enumerate(estimate, start=1))
    return estimate if sound else _FALLBACK_DISCOUNTS


def _find(ascending: _Ids, wanted: _Ids) -> tuple[_Ids, npt.NDArray[np.bool_]]:
    """Where each wanted key lies, and whether it is there; the place of one that is not there means nothing."""
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return places, ascending[places] == wanted
