"""Averages over what followed earlier occurrences of the current n-gram: the fixed attention of an n-gram head.

Position t looks at s when the n tokens up to s - 1 are the n tokens up to t, and s comes before t.

Decisions:
- Where to look depends on the token ids alone. `ngram_occurrences` finds it once for a batch, in O(T log T) sorts of
  integers, and every head of that order averages by it in O(T d): positions with the same n-gram lie side by side, in
  the order of time, so that a sum over earlier ones is the difference of two running sums.
- Nothing is hashed: each n-gram of the batch has a number of its own, made of the number of the n-gram one token
  shorter and of its last token, so two n-grams never share one.
- Running sums go over the whole batch and are kept in float64: in float32 the difference of two large sums would lose
  what is left of a small one.
- A position never looks at itself: where the token before it ended the same n-gram, that occurrence is left out.
- Documents do not look into each other, and padding belongs to none. With a separator an n-gram does not reach back
  over one, but may begin with it, so that beginnings of strings are alike.
- Shapes do not depend on the data, so `torch.compile` can trace all of it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NO_DOCUMENT = -1
"""The document of a token that is padding."""


class NGramOccurrences(NamedTuple):
    """Where the n-grams of a batch occurred before; N is batch times length.

    Attributes:
        by_ngram: (N,) positions of the flattened batch, those of one n-gram side by side and in the order of time.
        first: (N,) for each position, the place in `by_ngram` where its n-gram begins.
        last: (N,) for each position, the place after the last occurrence that it may use.
    """

    by_ngram: Tensor
    first: Tensor
    last: Tensor


def ngram_matches(
    input_ids: Tensor, documents: Tensor, order: int, *, separator: int | None = None, queries: int | None = None
) -> Tensor:
    """What each position looks at, by comparing pairs of positions.

    Args:
        input_ids: (batch, length).
        documents: (batch, length) integers that tell the documents of a row apart; -1 for padding.
        order: n, the tokens that have to be the same.
        separator: the token id that n-grams do not reach back over; None where there is none.
        queries: only the last so many positions are asked for; None for all.

    Returns:
        (batch, queries, length) booleans, true at (t, s) where t looks at s.
    """
    length = input_ids.shape[1]
    asked = slice(length - (queries or length), length)
    usable = _usable(input_ids, documents, order, separator)
    same = usable[:, asked, None] & usable[:, None] & (documents[:, asked, None] == documents[:, None])
    for back in range(order):
        ids = input_ids.roll(back, dims=1)
        same = same & (ids[:, asked, None] == ids[:, None])
    before = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril(-1)[asked]
    return F.pad(same[..., :-1], (1, 0)) & before  # what followed the match


def ngram_average_reference(hidden_states: Tensor, matches: Tensor) -> Tensor:
    """The definition that `ngram_average` is held to.

    Args:
        hidden_states: (batch, length, width).
        matches: (batch, queries, length), as `ngram_matches` gives them.

    Returns:
        (batch, queries, width), zeros where nothing matches; in the dtype of `hidden_states`.
    """
    wide = torch.promote_types(hidden_states.dtype, torch.float32)  # bfloat16 cannot count beyond 256
    weights = matches.to(wide)
    means = (weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)) @ hidden_states.to(wide)
    return means.to(hidden_states.dtype)


def ngram_occurrences(
    input_ids: Tensor, documents: Tensor, order: int, *, separator: int | None = None
) -> NGramOccurrences:
    """What each position looks at, for `ngram_average`; arguments as for `ngram_matches`."""
    count = input_ids.numel()
    rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    numbers = _numbered((rows * (documents.max() + 2) + documents + 1).flatten())
    for back in range(order):
        numbers = _numbered(numbers * count + _numbered(input_ids.roll(back, dims=1).flatten()))
    usable = _usable(input_ids, documents, order, separator).flatten()
    numbers = torch.where(usable, numbers, count)
    by_ngram = numbers.argsort(stable=True)
    places = torch.arange(count, device=input_ids.device)
    begins = _begins(numbers[by_ngram])
    first = torch.where(begins, places, 0).cummax(dim=0).values
    follows_itself = ~begins & (by_ngram.roll(1) == by_ngram - 1)
    last = places - follows_itself.long()
    to_time = torch.empty_like(by_ngram).scatter_(0, by_ngram, places)
    return NGramOccurrences(by_ngram, *(torch.where(usable, ends[to_time], 0) for ends in (first, last)))


def ngram_average(hidden_states: Tensor, occurrences: NGramOccurrences) -> Tensor:
    """The mean of what followed earlier occurrences of each position's n-gram.

    Args:
        hidden_states: (batch, length, width).
        occurrences: of the batch's token ids.

    Returns:
        (batch, length, width), zeros where an n-gram is new; in the dtype of `hidden_states`.
    """
    by_ngram, first, last = occurrences
    followers = hidden_states.flatten(0, 1).index_select(0, (by_ngram + 1) % len(by_ngram))
    sums = F.pad(followers.double().cumsum(dim=0), (0, 0, 1, 0))
    counts = (last - first).clamp(min=1)[:, None]
    means = (sums.index_select(0, last) - sums.index_select(0, first)) / counts
    return means.to(hidden_states.dtype).view_as(hidden_states)


def _usable(input_ids: Tensor, documents: Tensor, order: int, separator: int | None) -> Tensor:
    """(batch, length) booleans: whether the n tokens up to here are an n-gram of one document."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    usable = (documents != NO_DOCUMENT) & (places >= order - 1)
    for back in range(1, order):
        usable = usable & (documents.roll(back, dims=1) == documents)
        if separator is not None:
            usable = usable & (input_ids.roll(back - 1, dims=1) != separator)
    return usable


def _numbered(keys: Tensor) -> Tensor:
    """Equal keys get equal numbers, from 0 to less than their count; (N,) to (N,)."""
    order = keys.argsort()
    numbers = _begins(keys[order]).cumsum(dim=0) - 1
    return torch.empty_like(order).scatter_(0, order, numbers)


def _begins(ordered: Tensor) -> Tensor:
    """(N,) booleans: whether a key differs from the one before it."""
    return torch.cat((torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]))
