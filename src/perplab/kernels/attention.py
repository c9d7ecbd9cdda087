"""Causal attention over packed rows: several documents in one row, none of which sees another.

Decisions:
- `position_ids` say where documents begin: a position of 0 opens one, and a query sees the keys from the last 0 up to
  itself. That is the convention packed batches already follow, so no second description of the layout travels along.
- On CPU nothing is computed across a document border. A document takes the blocks of `blocked_attention.py` where they
  are faster than torch's flash kernel, which serves the rest: see `blocked_lengths`. In float32 the flash kernel runs
  at three quarters of the speed of matrix products from 2,048 tokens on, which leaves no room.
  `benchmarks/attention.py` measures both. The flash kernel knows no sliding window and no soft cap: where one matters,
  the blocks serve.
- Either way memory is linear in length: scores are computed again in the backward pass.
- float16 is computed in float32 on CPU, whose matrix products have no fast path for it.
- On CUDA the kernels of `triton_attention.py` serve what they fit, and one masked call of scaled dot-product attention
  the rest; a soft cap takes the definition.
- The kernel is a registered operator, opaque to `torch.compile`: cutting at document borders depends on the data.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.blocked_attention import Scoring, blocked_backward, blocked_forward, wide
from perplab.kernels.key_value_heads import shared_out


def packed_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Softmax attention with an explicit mask: the definition that `packed_attention` is held to.

    Args:
        query: (batch, heads, length, head_dim).
        key: (batch, key_value_heads, length, head_dim); `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        position_ids: (batch, length) integers; 0 opens a document, as does the first column.
        scale: factor on the scores; None for head_dim ** -0.5.
        sliding_window: how many tokens a token sees, itself among them; None for all before it.
        soft_cap: c in c * tanh(scores / c), applied to scaled scores; None for none.

    Returns:
        (batch, heads, length, head_dim), in the dtype of `query`.

    Raises:
        PerplabError: the heads, the window or the cap cannot be used.
    """
    scoring = _checked(query, scale, sliding_window, soft_cap)
    key, value = shared_out(query, key, value)
    scores = query @ key.transpose(-1, -2) * scoring.scale
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    scores = scores.masked_fill(~packed_mask(position_ids, sliding_window), float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


def packed_mask(position_ids: Tensor, sliding_window: int | None = None) -> Tensor:
    """Which key each query may see: (batch, 1, length, length) booleans, true inside a document and not after it."""
    document = (position_ids == 0).cumsum(dim=-1)
    same_document = document[:, None, :, None] == document[:, None, None, :]
    length = position_ids.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    if sliding_window is not None:
        causal = causal.triu(1 - sliding_window)
    return same_document & causal


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    *,
    scale: float | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention inside each document of a packed row; arguments as for the reference."""
    scoring = _checked(query, scale, sliding_window, soft_cap)
    if query.device.type != "cpu":
        return _accelerated(query, key, value, position_ids, scoring)
    key, value = shared_out(query, key, value)
    needs_gradient = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    states = [tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in (query, key, value)]
    output: Tensor = _cpu_attention(*states, position_ids, *scoring, needs_gradient)[0]
    return output.to(query.dtype)


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
    scoring = _checked(query, scale, None, None)
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    if _is_blocked(query, scoring, needs_gradient=False):
        return blocked_forward(query, key, value, scoring=scoring)
    output: Tensor = _flash_forward(query, key, value, 0.0, True, scale=scoring.scale)[0]
    return output


def _checked(query: Tensor, scale: float | None, sliding_window: int | None, soft_cap: float | None) -> Scoring:
    if sliding_window is not None and sliding_window < 1:
        raise PerplabError(f"a sliding window of {sliding_window} hides every token", "use 1 or more")
    if soft_cap is not None and soft_cap <= 0:
        raise PerplabError(f"scores cannot be capped at {soft_cap}", "use a positive soft cap")
    return Scoring(query.shape[-1] ** -0.5 if scale is None else scale, sliding_window, soft_cap)


def _accelerated(query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, scoring: Scoring) -> Tensor:
    """Attention on an accelerator."""
    if scoring.soft_cap is not None:
        return packed_attention_reference(query, key, value, position_ids, **scoring._asdict())
    if query.device.type == "cuda":
        from perplab.kernels import triton_attention

        if triton_attention.fits(query, key):
            return triton_attention.triton_attention(
                query, key, value, position_ids, scale=scoring.scale, sliding_window=scoring.sliding_window
            )
    mask = packed_mask(position_ids, scoring.sliding_window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scoring.scale, enable_gqa=True)


@torch.library.custom_op("perplab::cpu_attention", mutates_args=())
def _cpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the log-normalisers (batch, heads, length) that the flash kernel's backward pass asks for."""
    scoring = Scoring(scale, sliding_window, soft_cap)
    output, logsumexp = _attention_like(query, key, value, position_ids, *scoring, needs_gradient)
    for rows, columns in _documents(position_ids):
        inputs = [states[rows, :, columns] for states in (query, key, value)]
        if _is_blocked(inputs[0], scoring, needs_gradient):
            output[rows, :, columns] = blocked_forward(*inputs, scoring=scoring)
        else:
            output[rows, :, columns], logsumexp[rows, :, columns] = _flash_forward(*inputs, 0.0, True, scale=scale)
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
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    scoring = Scoring(scale, sliding_window, soft_cap)
    grads: tuple[Tensor, Tensor, Tensor] = _gradients_like(
        grad_output, query, key, value, output, logsumexp, position_ids, *scoring
    )
    for rows, columns in _documents(position_ids):
        inputs = [states[rows, :, columns] for states in (grad_output, query, key, value)]
        if _is_blocked(inputs[1], scoring, needs_gradient=True):
            pieces = blocked_backward(*inputs, scoring=scoring)
        else:
            saved = (states[rows, :, columns] for states in (output, logsumexp))
            pieces = _flash_backward(*inputs, *saved, 0.0, True, scale=scale)
        for grad, piece in zip(grads, pieces, strict=True):
            grad[rows, :, columns] = piece
    return grads


_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def blocked_lengths(dtype: torch.dtype, needs_gradient: bool) -> range:
    """Lengths of documents at which the blocks are faster than torch's flash kernel, as measured on an AMD EPYC."""
    if dtype != torch.bfloat16:
        return range(256, 513)
    return range(1, 1025) if needs_gradient else range(1, 4097)


def _is_blocked(query: Tensor, scoring: Scoring, needs_gradient: bool) -> bool:
    """Whether a document, (rows, heads, length, head_dim), takes the blocked path."""
    length = query.shape[2]
    if scoring.soft_cap is not None or (scoring.sliding_window is not None and scoring.sliding_window < length):
        return True
    return length in blocked_lengths(query.dtype, needs_gradient)


def _documents(position_ids: Tensor) -> list[tuple[slice, slice]]:
    """Cut a packed batch into (rows, columns) that hold one document each; whole rows of one document stay together."""
    batch, length = position_ids.shape
    opens = position_ids == 0
    opens[:, :1] = True
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
def _attention_like(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_ids: Tensor,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logsumexp = query.new_zeros(query.shape[:3], dtype=wide(query.dtype))
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
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    like_query, like_key, like_value = (
        torch.empty_like(states, memory_format=torch.contiguous_format) for states in (query, key, value)
    )
    return like_query, like_key, like_value


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, position_ids, *scoring, _ = inputs
    ctx.save_for_backward(query, key, value, *output, position_ids)
    ctx.scoring = scoring


def _backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _cpu_attention_backward(grad_output, *ctx.saved_tensors, *ctx.scoring)
    return *grads, *(None,) * 5


_cpu_attention.register_autograd(_backward, setup_context=_keep_for_backward)
