"""N-gram models of one episode: what followed the last symbols so far, in this context and nowhere else.

Decisions:
- Strings are separate: the context of a symbol reaches back to the beginning of its string, and what lacks there is
  filled with one mark, so that beginnings of strings are alike. The first string begins like the others.
- Contexts are compared pair by pair, so an episode costs two matrix products an order.
- `backoff`: a context of n - 1 symbols was met C times so far, now among them, and was followed by v in c of them.
  Symbols that have followed it get c / C; what is left goes to the other symbols of the episode, in proportion to the
  order below. C counts contexts that nothing followed, as the published code does: ends of strings, and now.
- `uniform`: what `backoff` gives to the symbols that one order knows is shared out among them evenly: the edges of a
  state are equally likely, so how often one was taken says nothing.
- `add-one` and `kneser-ney` (interpolated, one discount) know all letters; the others only those of the episode.
- Without a symbol to go by, all letters are equally likely.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.evaluation.language_learning.metrics import Floats
from perplab.text.synthetic.language_learning import LETTERS, SEPARATOR, VOCABULARY_SIZE

Smoothing = Literal["none", "add-one", "uniform", "backoff", "kneser-ney"]
DISCOUNT = 0.75
"""What Kneser-Ney smoothing takes from every count."""

_Ids = npt.NDArray[np.int64]
_Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FollowerCounts:
    """What was seen before each prediction, for contexts of one length.

    Attributes:
        counts: (length, letters) how often each letter has followed the context.
        continuations: (length, letters) the same, counting every context one symbol longer once.
        met: (length,) how often the context was met, now among them.
    """

    counts: Floats
    continuations: Floats
    met: Floats


def follower_counts(input_ids: _Ids, order: int) -> list[FollowerCounts]:
    """Counts of an episode for n-grams of 1 to `order` symbols, the follower among them.

    Args:
        input_ids: (length,).
        order: of the longest.
    """
    ids = np.concatenate(([SEPARATOR], input_ids))
    following = np.concatenate((ids[1:], [SEPARATOR]))
    is_followed = following < len(LETTERS)
    followers = np.eye(VOCABULARY_SIZE)[following, : len(LETTERS)]
    before = np.tri(len(ids), k=-1, dtype=bool)
    symbols = _symbols_before(ids, order)
    same_follower = following[:, None] == following
    found = []
    for length in range(order):
        same = _same(symbols[:length], len(ids))
        same_longer = same & _same(symbols[length : length + 1], len(ids))
        is_new = ~(same_longer & same_follower & before).any(axis=1)
        seen = (same & before).astype(np.float64)
        rows = FollowerCounts(
            seen @ (followers * is_followed[:, None]),
            seen @ (followers * (is_followed & is_new)[:, None]),
            seen.sum(axis=1) + 1,
        )
        found.append(FollowerCounts(rows.counts[1:], rows.continuations[1:], rows.met[1:]))
    return found


class InContextNGram:
    """Predicts each symbol from the episode before it; called with ids (length,), returns (length, vocabulary).

    Args:
        order: symbols of an n-gram, the predicted one among them.
        smoothing: what is done about symbols that have not followed a context; the module says what each means.

    Raises:
        PerplabError: the order is below 1, or there is no such smoothing.
    """

    def __init__(self, order: int = 3, smoothing: Smoothing = "backoff") -> None:
        if order < 1:
            raise PerplabError(f"n-gram order {order} is not positive", "give 1 or more")
        if smoothing not in get_args(Smoothing):
            raise PerplabError(f"unknown smoothing {smoothing!r}", f"choose from {', '.join(get_args(Smoothing))}")
        self.order = order
        self.smoothing = smoothing

    def __call__(self, input_ids: _Ids) -> Floats:
        """Distributions of what follows each token, (length, vocabulary)."""
        seen = follower_counts(input_ids, self.order)
        if self.smoothing == "none":
            letters = _normalised(seen[-1].counts)
        elif self.smoothing == "add-one":
            letters = _normalised(seen[-1].counts + 1)
        elif self.smoothing == "kneser-ney":
            letters = _kneser_ney(seen)
        else:
            letters = _backed_off(seen, evenly=self.smoothing == "uniform")
        return np.pad(letters, ((0, 0), (0, VOCABULARY_SIZE - len(LETTERS))))


def _symbols_before(ids: _Ids, count: int) -> list[_Ids]:
    """For each position the symbol that lies 0, 1, ... back in its string; the separator where there is none."""
    string = np.cumsum(ids == SEPARATOR)
    found = []
    for back in range(count):
        symbols = np.roll(ids, back)
        symbols[:back] = SEPARATOR
        symbols[back:][string[back:] != string[: len(ids) - back]] = SEPARATOR
        found.append(symbols)
    return found


def _same(symbols: list[_Ids], length: int) -> _Booleans:
    """(length, length) whether two positions have the same symbols."""
    same = np.ones((length, length), dtype=bool)
    for each in symbols:
        same &= each[:, None] == each
    return same


def _normalised(counts: Floats) -> Floats:
    """Rows that sum to 1; even ones where nothing was counted."""
    totals = counts.sum(axis=-1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1e-300), 1 / counts.shape[-1])


def _backed_off(seen: list[FollowerCounts], *, evenly: bool) -> Floats:
    probabilities = _evened(_normalised(seen[0].counts), seen[0].counts > 0) if evenly else _normalised(seen[0].counts)
    for order in seen[1:]:
        known = order.counts > 0
        direct = order.counts / order.met[:, None]
        rest = np.where(known, 0.0, probabilities)
        left = 1 - direct.sum(axis=-1, keepdims=True)
        share = rest / np.maximum(rest.sum(axis=-1, keepdims=True), 1e-300)
        probabilities = _normalised((_evened(direct, known) if evenly else direct) + left * share)
    return probabilities


def _evened(probabilities: Floats, known: _Booleans) -> Floats:
    """The mass on known symbols, shared out evenly; rows where none is known stay as they are."""
    mass, count = (np.where(known, values, 0.0).sum(axis=-1, keepdims=True) for values in (probabilities, 1.0))
    return np.where(count > 0, known * mass / np.maximum(count, 1), probabilities)


def _kneser_ney(seen: list[FollowerCounts]) -> Floats:
    probabilities = np.full_like(seen[0].counts, 1 / len(LETTERS))
    for order in seen:
        counts = order.counts if order is seen[-1] else order.continuations
        total = counts.sum(axis=-1, keepdims=True)
        freed = DISCOUNT * (counts > 0).sum(axis=-1, keepdims=True)
        mixed = (np.maximum(counts - DISCOUNT, 0) + freed * probabilities) / np.maximum(total, 1)
        probabilities = np.where(total > 0, mixed, probabilities)
    return probabilities
