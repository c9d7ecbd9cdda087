"""Causal attention over packed rows: several documents in one row, none of which sees another.

Decisions:
- `position_ids` say where documents begin: a position of 0 opens one, and a query sees the keys from the last 0 up to
  itself. That is the convention packed batches already follow, so no second description of the layout travels along.
- On CPU nothing is computed across a document border. Short documents in bfloat16 are cut into blocks of queries that
  meet only the keys up to their own end, a few heads at a time, so that the scores stay in cache: matrix products and
  torch's fused softmax, faster up to 512 tokens than torch's flash kernel, which serves everything else.
  `benchmarks/attention.py` measures both. Scoring, which needs no gradient, takes the blocks at any length.
- The blocked path keeps nothing of the size of the scores for the backward pass, which computes them again. It rounds
  scores to bfloat16 before the softmax, which itself works in float32.
- On CUDA the same function is one masked call of scaled dot-product attention.
- The kernel is a registered operator, opaque to `torch.compile`: cutting at document borders depends on the data.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 256
"""Queries that meet their keys at a time."""

CACHED_SCORES = 2**20
"""Scores held at a time: 2 MiB in bfloat16, about the cache of two cores."""

LONGEST_BLOCKED = 512
"""Documents up to this length take the blocked path in bfloat16."""


def packed_attention_reference(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """Softmax attention with an explicit mask: the definition that `packed_attention` is held to.

    Args:
        query: (batch, heads, length, head_dim).
        key: (batch, key_value_heads, length, head_dim); `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        position_ids: (batch, length) integers; 0 opens a document, as does the first column.

    Returns:
        (batch, heads, length, head_dim), in the dtype of `query`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~packed_mask(position_ids), float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


def packed_mask(position_ids: Tensor) -> Tensor:
    """Which key each query may see: (batch, 1, length, length) booleans, true inside a document and not after it."""
    document = (position_ids == 0).cumsum(dim=-1)
    same_document = document[:, None, :, None] == document[:, None, None, :]
    length = position_ids.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    return same_document & causal


def packed_attention(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> Tensor:
    """Causal grouped-query attention inside each document of a packed row; arguments as for the reference."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=packed_mask(position_ids), enable_gqa=True)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    output: Tensor = _cpu_attention(query, key, value, position_ids)[0]
    return output


@torch.library.custom_op("perplab::cpu_attention", mutates_args=())
def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the log-normalisers (batch, heads, length) that the flash kernel's backward pass asks for."""
    output, logsumexp = _attention_like(query, key, value, position_ids)
    for rows, columns in _documents(position_ids):
        inputs = [states[rows, :, columns] for states in (query, key, value)]
        if _is_blocked(inputs[0]):
            output[rows, :, columns] = _blocked_forward(*inputs)
        else:
            output[rows, :, columns], logsumexp[rows, :, columns] = _flash_forward(*inputs, 0.0, True)
    return output, logsumexp


@torch.library.custom_op("perplab::cpu_attention_backward", mutates_args=())
def _cpu_attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    position_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients_like(grad_output, query, key, value, output, logsumexp, position_ids)
    for rows, columns in _documents(position_ids):
        inputs = [states[rows, :, columns] for states in (grad_output, query, key, value)]
        if _is_blocked(inputs[1]):
            pieces = _blocked_backward(*inputs)
        else:
            saved = (states[rows, :, columns] for states in (output, logsumexp))
            pieces = _flash_backward(*inputs, *saved, 0.0, True)
        for grad, piece in zip(grads, pieces, strict=True):
            grad[rows, :, columns] = piece
    return grads


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Causal attention of whole sequences, by the fastest kernel for their device, length and dtype; no gradient.

    Args:
        query: (sequences, heads, length, head_dim).
        key: as `query`.
        value: as `query`.
        scale: factor on the scores; None for head_dim ** -0.5.

    Returns:
        (sequences, heads, length, head_dim).
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    if query.dtype == torch.bfloat16:
        return _blocked_forward(query, key, value, scale=scale)
    output: Tensor = _flash_forward(query, key, value, 0.0, True, scale=scale)[0]
    return output


_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _is_blocked(query: Tensor) -> bool:
    return query.dtype == torch.bfloat16 and query.shape[2] <= LONGEST_BLOCKED


def _blocked_forward(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Attention of whole documents, each argument (documents, heads, length, head_dim)."""
    queries, keys, values = (states.flatten(0, 1).contiguous() for states in (query, key, value))
    mixed = torch.empty_like(queries)
    for heads, block, seen in _blocks(*queries.shape[:2]):
        mixed[heads, block] = _weights(queries[heads, block], keys[heads, seen], scale) @ values[heads, seen]
    return mixed.view(query.shape)


def _blocked_backward(grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_blocked_forward`; those of keys and values are summed over blocks in float32 or wider."""
    grad_mixed, queries, keys, values = (
        states.flatten(0, 1).contiguous() for states in (grad_output, query, key, value)
    )
    scale = query.shape[-1] ** -0.5
    grad_queries = torch.empty_like(queries)
    grad_keys, grad_values = (torch.zeros_like(states, dtype=_wide(states.dtype)) for states in (keys, values))
    for heads, block, seen in _blocks(*queries.shape[:2]):
        weights = _weights(queries[heads, block], keys[heads, seen])
        grad_values[heads, seen] += weights.transpose(1, 2) @ grad_mixed[heads, block]
        grad_weights = grad_mixed[heads, block] @ values[heads, seen].transpose(1, 2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_queries[heads, block] = (grad_scores @ keys[heads, seen]).mul_(scale)
        grad_keys[heads, seen].add_(grad_scores.transpose(1, 2) @ queries[heads, block], alpha=scale)
    return grad_queries.view(query.shape), grad_keys.view(query.shape), grad_values.view(query.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _weights(queries: Tensor, keys: Tensor, scale: float | None = None) -> Tensor:
    """Attention weights of a block of queries over the keys up to the block's own end."""
    block, seen = queries.shape[1], keys.shape[1]
    future = _future(1 << (seen - 1).bit_length(), queries.dtype)
    future = future[:block, -QUERY_BLOCK - (seen - block) : future.shape[1] - QUERY_BLOCK + block]
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.baddbmm(future, queries, keys.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1)


@functools.cache
def _future(longest: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a block of queries: -inf after each query's own place, `longest` columns in."""
    return torch.full((QUERY_BLOCK, longest + QUERY_BLOCK), float("-inf"), dtype=dtype).triu_(longest + 1)


def _blocks(heads: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut (heads, queries) into pieces whose scores fit the cache: (heads, queries, keys those queries may see)."""
    at_once = max(1, CACHED_SCORES // (QUERY_BLOCK * length))
    for first in range(0, heads, at_once):
        for start in range(0, length, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, length)
            yield slice(first, first + at_once), slice(start, end), slice(0, end)


def _documents(position_ids: Tensor) -> list[tuple[slice, slice]]:
    """Cut a packed batch into (rows, columns) that hold one document each; whole rows of one document stay together."""
    batch, length = position_ids.shape
    opens = position_ids == 0
    opens[:, 0] = True
    single = (opens.sum(dim=1) == 1).tolist()
    pieces: list[tuple[slice, slice]] = []
    row = 0
    while row < batch:
        if single[row]:
            end = next((other for other in range(row, batch) if not single[other]), batch)
            pieces.append((slice(row, end), slice(0, length)))
            row = end
        else:
            borders = [*opens[row].nonzero().flatten().tolist(), length]
            pieces += [(slice(row, row + 1), slice(a, b)) for a, b in itertools.pairwise(borders)]
            row += 1
    return pieces


@_cpu_attention.register_fake
def _attention_like(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    logsumexp = query.new_zeros(query.shape[:3], dtype=_wide(query.dtype))
    return torch.empty_like(query, memory_format=torch.contiguous_format), logsumexp


@_cpu_attention_backward.register_fake
def _gradients_like(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    position_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    like_query, like_key, like_value = (
        torch.empty_like(states, memory_format=torch.contiguous_format) for states in (query, key, value)
    )
    return like_query, like_key, like_value


def _keep_for_backward(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]
) -> None:
    query, key, value, position_ids = inputs
    ctx.save_for_backward(query, key, value, *output, position_ids)


def _backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_cpu_attention_backward(grad_output, *ctx.saved_tensors), None


_cpu_attention.register_autograd(_backward, setup_context=_keep_for_backward)
