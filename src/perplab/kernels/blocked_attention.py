"""Causal attention of whole documents in blocks of queries, by matrix products and torch's fused softmax, on CPU.

Decisions:
- A block of queries meets the keys from the first that any of them sees up to the block's own end, a few heads at a
  time, so that the scores stay in cache. With a sliding window, time and memory are linear in length.
- Nothing of the size of the scores is kept for the backward pass, which computes them again.
- Scores are rounded to the dtype of the inputs before the softmax, which itself works in float32. Gradients of keys and
  values are summed over blocks in float32 or wider.
- What a block may not see is added as -inf inside the product. One band serves every block: its columns are counted
  back from the block's end.
- bfloat16 takes larger blocks, because its matrix products need more rows to run at full speed.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CACHED_BYTES = 2**21
"""Scores held at a time: about the second-level cache of two cores."""


class Scoring(NamedTuple):
    """How scores are made of products of queries and keys.

    Attributes:
        scale: factor on the products.
        sliding_window: how many tokens a token sees, itself among them; None for all before it.
        soft_cap: c in c * tanh(scores / c), applied to scaled scores; None for none.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None


def query_block(dtype: torch.dtype) -> int:
    """Queries that meet their keys at a time."""
    return 256 if dtype == torch.bfloat16 else 64


def blocked_forward(query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring) -> Tensor:
    """Causal attention, every argument (documents, heads, length, head_dim)."""
    queries, keys, values = (states.flatten(0, 1).contiguous() for states in (query, key, value))
    mixed = torch.empty_like(queries)
    for heads, block, seen in _blocks(queries, scoring.sliding_window):
        weights, _ = _weights(queries[heads, block], keys[heads, seen], scoring)
        mixed[heads, block] = weights @ values[heads, seen]
    return mixed.view(query.shape)


def blocked_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, *, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `blocked_forward` for query, key and value; those of keys and values are float32 or wider."""
    grad_mixed, queries, keys, values = (
        states.flatten(0, 1).contiguous() for states in (grad_output, query, key, value)
    )
    grad_queries = torch.empty_like(queries)
    grad_keys, grad_values = (torch.zeros_like(states, dtype=wide(states.dtype)) for states in (keys, values))
    for heads, block, seen in _blocks(queries, scoring.sliding_window):
        weights, slope = _weights(queries[heads, block], keys[heads, seen], scoring)
        grad_values[heads, seen] += weights.transpose(1, 2) @ grad_mixed[heads, block]
        grad_weights = grad_mixed[heads, block] @ values[heads, seen].transpose(1, 2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        if slope is not None:
            grad_scores *= slope
        grad_queries[heads, block] = (grad_scores @ keys[heads, seen]).mul_(scoring.scale)
        grad_keys[heads, seen].add_(grad_scores.transpose(1, 2) @ queries[heads, block], alpha=scoring.scale)
    return grad_queries.view(query.shape), grad_keys.view(query.shape), grad_values.view(query.shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _weights(queries: Tensor, keys: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """Attention weights of a block of queries over the keys up to the block's own end, and the slope of the cap."""
    band = _band_of(queries.shape[1], keys.shape[1], queries.dtype, scoring.sliding_window)
    if scoring.soft_cap is None:
        return torch.softmax(torch.baddbmm(band, queries, keys.transpose(1, 2), alpha=scoring.scale), dim=-1), None
    share = torch.bmm(queries, keys.transpose(1, 2)).mul_(scoring.scale / scoring.soft_cap).tanh_()
    return torch.softmax(torch.add(band, share, alpha=scoring.soft_cap), dim=-1), 1 - share.square()


def _band_of(block: int, seen: int, dtype: torch.dtype, sliding_window: int | None) -> Tensor:
    """What is added to the scores of `block` queries that meet `seen` keys, the last of both the same token."""
    before = seen - block
    reach = 1 << (seen - 1).bit_length() if sliding_window is None else sliding_window - 1
    return _band(reach, sliding_window is not None, dtype)[:block, reach - before : reach + block]


@functools.lru_cache(maxsize=16)
def _band(reach: int, is_windowed: bool, dtype: torch.dtype) -> Tensor:
    """-inf after each query's own place, `reach` columns in, and with a window also `reach` before it; 0 between."""
    rows = query_block(dtype)
    band = torch.full((rows, reach + rows), float("-inf"), dtype=dtype)
    visible = torch.ones_like(band, dtype=torch.bool).tril_(reach)
    if is_windowed:
        visible.triu_()
    return band.masked_fill_(visible, 0.0)


def _blocks(queries: Tensor, sliding_window: int | None) -> Iterator[tuple[slice, slice, slice]]:
    """Cut (heads, queries) into pieces whose scores fit the cache: (heads, queries, keys those queries may see)."""
    heads, length, _ = queries.shape
    rows = query_block(queries.dtype)
    reach = length if sliding_window is None else min(length, sliding_window + rows)
    at_once = max(1, CACHED_BYTES // (queries.element_size() * rows * reach))
    for first in range(0, heads, at_once):
        for start in range(0, length, rows):
            end = min(start + rows, length)
            first_seen = 0 if sliding_window is None else max(0, start - sliding_window + 1)
            yield slice(first, first + at_once), slice(start, end), slice(first_seen, end)
