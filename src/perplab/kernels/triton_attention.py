"""Attention over packed rows on a GPU: the loops of FlashAttention-2 in Triton.

Decisions:
- A program has one tile of queries of one head and goes over the keys from the first that any of its queries sees to
  the last. For each query two numbers say what it sees: the first key (where its document or its window begins) and
  itself. Documents, causality and the window are that one comparison.
- Saved for the backward pass: inputs, output and logsumexp. One kernel goes over keys for a tile of queries, another
  over queries for a tile of keys, so nothing is added atomically and the same inputs give the same gradients.
- Heads of keys are shared by index, never copied. Their gradients come out a query head at a time and are summed after.
- Sums are kept in float32, exponentials are powers of two.
- Sizes of tiles are fixed and not tuned. Importing this module needs Triton; nothing else of perplab does.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

LARGEST_HEAD = 128
SMALLEST_HEAD = 16
BLOCK = 64
"""Queries and keys of a tile: the scores of a tile and its operands at head size 128 fit the registers of 4 warps."""

_SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LOG2_E = 1.4426950408889634


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether Triton is there and the kernels serve these shapes and dtypes."""
    head_dim = query.shape[-1]
    return (
        importlib.util.find_spec("triton") is not None
        and SMALLEST_HEAD <= head_dim <= LARGEST_HEAD
        and head_dim & (head_dim - 1) == 0
        and query.shape[2] > 0
        and query.shape[2] == key.shape[2]
        and query.shape[1] % key.shape[1] == 0
        and query.dtype in _SERVED_DTYPES
    )


def triton_attention(
    query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, *, scale: float, sliding_window: int | None
) -> Tensor:
    """Causal grouped-query attention inside each document; arguments as for `packed_attention`."""
    first = first_visible(position_ids, sliding_window)
    output: Tensor = _TritonAttention.apply(query, key, value, first, last_seeing(first), scale)  # type: ignore[no-untyped-call]
    return output


def first_visible(position_ids: Tensor, sliding_window: int | None) -> Tensor:
    """The first key each query sees, (batch, length) 32-bit columns."""
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)
    first = torch.where(position_ids == 0, columns, 0).cummax(dim=1).values
    if sliding_window is not None:
        first = torch.maximum(first, columns - (sliding_window - 1))
    return first.to(torch.int32)


def last_seeing(first: Tensor) -> Tensor:
    """The last query that sees each key, (batch, length) 32-bit columns; `first` never falls along a row."""
    columns = torch.arange(first.shape[1], device=first.device, dtype=torch.int32).expand_as(first).contiguous()
    return (torch.searchsorted(first.contiguous(), columns, right=True) - 1).to(torch.int32)


class _TritonAttention(torch.autograd.Function):
    """The kernels of `triton_attention_kernels.py` with what they save."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, first: Tensor, last: Tensor, scale: float
    ) -> Tensor:
        from perplab.kernels.triton_attention_kernels import forward_kernel

        query, key, value = (states.contiguous() for states in (query, key, value))
        batch, heads, length, head_dim = query.shape
        output = torch.empty_like(query)
        logsumexp = query.new_empty(batch, heads, length, dtype=torch.float32)
        grid = (-(-length // BLOCK), batch * heads)
        forward_kernel[grid](
            query, key, value, first, output, logsumexp, scale * _LOG2_E, heads, key.shape[1], length, head_dim, BLOCK
        )
        ctx.save_for_backward(query, key, value, first, last, output, logsumexp)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        from perplab.kernels.triton_attention_kernels import key_gradient_kernel, query_gradient_kernel

        query, key, value, first, last, output, logsumexp = ctx.saved_tensors
        batch, heads, length, head_dim = query.shape
        grad_output = grad_output.contiguous()
        offset = (grad_output.float() * output.float()).sum(dim=-1)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (query.new_empty(query.shape, dtype=torch.float32) for _ in range(2))
        inputs = (query, key, value, grad_output, logsumexp, offset)
        sizes = (ctx.scale, heads, key.shape[1], length, head_dim, BLOCK)
        grid = (-(-length // BLOCK), batch * heads)
        query_gradient_kernel[grid](*inputs, first, grad_query, *sizes)
        key_gradient_kernel[grid](*inputs, first, last, grad_key, grad_value, *sizes)
        shared = (batch, key.shape[1], heads // key.shape[1], length, head_dim)
        grads = [grad.view(shared).sum(dim=2).to(key.dtype) for grad in (grad_key, grad_value)]
        return grad_query, *grads, None, None, None
