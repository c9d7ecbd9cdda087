"""Exact attention a tile at a time: the scores of a whole sequence never exist together.

This is the algorithm of FlashAttention in its plainest form, to be read and to test faster kernels against.

Decisions:
- For a tile of queries the loop goes over tiles of keys. A running maximum, the running sum of exponentials and an
  accumulator are kept, and division comes once, at the end. Tiles of keys may come in any order.
- What is saved for the backward pass is the output and one number a query, the logarithm of the sum of its exponentials
  (`logsumexp`). The weights of a tile are made again from it: exp(scores - logsumexp).
- A query that may see nothing has output 0, logsumexp -inf and gradient 0. With `causal` and fewer keys than queries
  such queries exist: the last query and the last key are the same token.
- Tiles that the causal mask hides whole are skipped.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.key_value_heads import shared_out


class _Tiling(NamedTuple):
    """How the scores are cut and made.

    Attributes:
        block_q: queries of a tile.
        block_k: keys of a tile.
        causal: whether a query sees no key after it.
        scale: factor on the products.
        soft_cap: c in c * tanh(scores / c), or None.
    """

    block_q: int
    block_k: int
    causal: bool
    scale: float
    soft_cap: float | None

    def query_tiles(self, queries: int) -> Iterator[slice]:
        """The tiles of queries."""
        return (slice(start, min(start + self.block_q, queries)) for start in range(0, queries, self.block_q))

    def key_tiles(self, rows: slice, queries: int, keys: int) -> Iterator[slice]:
        """The tiles of keys that some query of `rows` sees."""
        end = min(keys, rows.stop + keys - queries) if self.causal else keys
        return (slice(start, min(start + self.block_k, keys)) for start in range(0, end, self.block_k))


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    block_q: int = 128,
    block_k: int = 64,
    causal: bool = False,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention with tiles of `block_q` x `block_k` scores.

    Args:
        query: (batch, heads, queries, head_dim).
        key: (batch, key_value_heads, keys, head_dim); `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        block_q: queries of a tile.
        block_k: keys of a tile.
        causal: whether a query sees no key after it; the last query and the last key are the same token.
        scale: factor on the scores; None for head_dim ** -0.5.
        soft_cap: c in c * tanh(scores / c), applied to scaled scores; None for none.

    Returns:
        The output, (batch, heads, queries, head_dim) in the dtype of `query`, and the logarithm of the sum of each
        query's exponentiated scores, (batch, heads, queries) in float32 or wider, through which no gradient flows.

    Raises:
        PerplabError: a tile is empty, or the heads do not belong together.
    """
    if min(block_q, block_k) < 1:
        raise PerplabError(f"a tile of {block_q} x {block_k} holds no scores", "use tiles of 1 x 1 or more")
    key, value = shared_out(query, key, value)
    tiling = _Tiling(block_q, block_k, causal, query.shape[-1] ** -0.5 if scale is None else scale, soft_cap)
    output, logsumexp = _TiledAttention.apply(query, key, value, tiling)  # type: ignore[no-untyped-call]
    return output, logsumexp


def merge_attention(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from the attention over each: output and logsumexp, as `tiled_attention` gives.

    Args:
        first: output (..., queries, head_dim) and logsumexp (..., queries) over one set of keys.
        second: the same queries over the other set.

    Returns:
        Output and logsumexp over both. A query that sees nothing in either has output 0.
    """
    (first_output, first_sum), (second_output, second_sum) = first, second
    both = torch.logaddexp(first_sum, second_sum)
    share = _exp_difference(first_sum, both)[..., None], _exp_difference(second_sum, both)[..., None]
    return (share[0] * first_output + share[1] * second_output).to(first_output.dtype), both


class _TiledAttention(torch.autograd.Function):
    """Forward with online softmax, backward with the weights of each tile computed again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiling: _Tiling) -> tuple[Tensor, Tensor]:
        queries, keys, values = (_widened(states) for states in (query, key, value))
        length, seen = queries.shape[-2], keys.shape[-2]
        output, logsumexp = torch.empty_like(queries), queries.new_empty(queries.shape[:-1])
        for rows in tiling.query_tiles(length):
            largest = torch.full_like(logsumexp[..., rows], float("-inf"))
            total = torch.zeros_like(largest)
            mixed = torch.zeros_like(queries[..., rows, :])
            for columns in tiling.key_tiles(rows, length, seen):
                scores, _ = _scores(queries, keys, rows, columns, tiling)
                new_largest = torch.maximum(largest, scores.amax(dim=-1))
                shrunk = _exp_difference(largest, new_largest)
                weights = _exp_difference(scores, new_largest[..., None])
                total = shrunk * total + weights.sum(dim=-1)
                mixed = shrunk[..., None] * mixed + weights @ values[..., columns, :]
                largest = new_largest
            output[..., rows, :] = mixed / total.masked_fill(total == 0, 1.0)[..., None]
            logsumexp[..., rows] = largest + total.log()
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.tiling = tiling
        ctx.mark_non_differentiable(logsumexp)
        return output.to(query.dtype), logsumexp

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        tiling: _Tiling = ctx.tiling
        queries, keys, values, upstream = (_widened(states) for states in (query, key, value, grad_output))
        length, seen = queries.shape[-2], keys.shape[-2]
        # What the softmax takes off each weight's gradient, sum_j P_ij dP_ij, is the product of output and gradient.
        offset = (upstream * output).sum(dim=-1, keepdim=True)
        grad_query, grad_key, grad_value = (torch.zeros_like(states) for states in (queries, keys, values))
        for rows in tiling.query_tiles(length):
            for columns in tiling.key_tiles(rows, length, seen):
                scores, slope = _scores(queries, keys, rows, columns, tiling)
                weights = _exp_difference(scores, logsumexp[..., rows, None])
                grad_weights = upstream[..., rows, :] @ values[..., columns, :].mT
                grad_scores = weights * (grad_weights - offset[..., rows, :]) * slope * tiling.scale
                grad_query[..., rows, :] += grad_scores @ keys[..., columns, :]
                grad_key[..., columns, :] += grad_scores.mT @ queries[..., rows, :]
                grad_value[..., columns, :] += weights.mT @ upstream[..., rows, :]
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _widened(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _scores(
    queries: Tensor, keys: Tensor, rows: slice, columns: slice, tiling: _Tiling
) -> tuple[Tensor, Tensor | float]:
    """A tile's scores, -inf where a query may not see, and the slope of the cap on them."""
    scores = queries[..., rows, :] @ keys[..., columns, :].mT * tiling.scale
    slope: Tensor | float = 1.0
    if tiling.soft_cap is not None:
        share = torch.tanh(scores / tiling.soft_cap)
        scores, slope = share * tiling.soft_cap, 1 - share.square()
    if tiling.causal:
        places = torch.arange(rows.start, rows.stop, device=queries.device) + keys.shape[-2] - queries.shape[-2]
        hidden = torch.arange(columns.start, columns.stop, device=queries.device) > places[:, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores, slope


def _exp_difference(smaller: Tensor, larger: Tensor) -> Tensor:
    """exp(smaller - larger), and 0 where both are -inf."""
    return torch.exp(smaller - larger.masked_fill(larger == float("-inf"), 0.0))
