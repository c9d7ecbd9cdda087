"""The head and the loss in one: cross-entropy of a linear layer without keeping its logits.

Decisions:
- Logits exist for one chunk of tokens at a time, so memory does not grow with tokens x vocabulary. The chunk shrinks as
  the vocabulary grows.
- The gradient is taken in the forward pass, while the chunk's logits are at hand: three matrix products a token, as
  many as a plain loss needs, and none is repeated in the backward pass. The price is that the summed loss is the only
  differentiable output; per-token costs come along for measurement.
- Products run in the dtype of `hidden_states` (under autocast, the autocast dtype); softmax, its logarithm, and the sum
  of the weight gradient over chunks are float32, or float64 for float64 input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 2**24
"""Logits held at a time: 64 MiB in float32."""

IGNORE_INDEX = -100


class LinearCrossEntropy(NamedTuple):
    """Result of the fused loss."""

    loss: Tensor
    """Scalar: sum over scored tokens of nll + z_loss * logsumexp^2, in nats. Differentiable."""
    nll: Tensor
    """(tokens,) float32: cost of each label in nats, 0 where ignored. Not differentiable."""


def linear_cross_entropy_reference(
    hidden_states: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0
) -> LinearCrossEntropy:
    """The definition: all logits at once, differentiated by autograd. Arguments as for `linear_cross_entropy`."""
    return cross_entropy_of_logits(F.linear(hidden_states, weight), labels, z_loss)


def cross_entropy_of_logits(logits: Tensor, labels: Tensor, z_loss: float = 0.0) -> LinearCrossEntropy:
    """The same loss where the logits are there already, (tokens, vocabulary)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    penalty = z_loss * torch.logsumexp(logits, dim=-1).square().masked_fill(labels == IGNORE_INDEX, 0.0)
    return LinearCrossEntropy((nll + penalty).sum(), nll.detach())


def softmax_gradient(logits: Tensor, labels: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradient with respect to a chunk of logits.

    Args:
        logits: (rows, vocabulary), any floating dtype.
        labels: (rows,) integers in [0, vocabulary) or -100.
        z_loss: weight of the squared log-normaliser.

    Returns:
        nll (rows,), logsumexp (rows,), both float32 (float64 for float64 logits) with 0 nll where ignored, and the
        gradient of the summed loss (rows, vocabulary) in the dtype of `logits`.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scored = labels != IGNORE_INDEX
    target = torch.where(scored, labels, 0)[:, None]
    maximum = wide.amax(dim=-1, keepdim=True)
    shifted = wide - maximum  # what follows keeps its precision however large the logits are
    log_sum = shifted.exp().sum(dim=-1, keepdim=True).log()
    logsumexp = log_sum + maximum
    nll = (log_sum - shifted.gather(1, target))[:, 0] * scored
    is_target = torch.arange(logits.shape[-1], device=logits.device) == target
    gradient = torch.exp(shifted - log_sum) * (1.0 + 2.0 * z_loss * logsumexp) - is_target.to(wide.dtype)
    return nll, logsumexp[:, 0], (gradient * scored[:, None]).to(logits.dtype)


SoftmaxGradient = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float = 0.0,
    chunk_step: SoftmaxGradient = softmax_gradient,
) -> LinearCrossEntropy:
    """Cross-entropy of `hidden_states @ weight.T` against `labels`, in chunks of tokens.

    Args:
        hidden_states: (tokens, hidden_size).
        weight: (vocabulary, hidden_size).
        labels: (tokens,) integers in [0, vocabulary), or -100 for a position that is not scored.
        z_loss: weight of the squared log-normaliser added to each scored token's loss.
        chunk_step: what runs on a chunk of logits; a compiled `softmax_gradient` fuses its passes over memory.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    weight = weight.to(hidden_states.dtype)
    loss, nll = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_states, weight, labels, z_loss, chunk_step
    )
    return LinearCrossEntropy(loss, nll)


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    """Equal chunks wherever possible: a power of two of them, so that a compiled step sees one shape."""
    number = 1
    while tokens > number and -(-tokens // number) * vocabulary > CHUNK_LOGITS:
        number *= 2
    rows = max(1, -(-tokens // number))
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss: float,
        chunk_step: SoftmaxGradient,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden_states.dtype == torch.float64 else torch.float32
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_states) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        nll = torch.empty(len(labels), dtype=wide, device=labels.device)
        loss = torch.zeros((), dtype=wide, device=labels.device)
        for rows in _chunks(len(labels), len(weight)):
            logits = hidden_states[rows] @ weight.T
            nll[rows], logsumexp, gradient = chunk_step(logits, labels[rows], z_loss)
            loss += nll[rows].sum() + z_loss * (logsumexp.square() * (labels[rows] != IGNORE_INDEX)).sum()
            if grad_hidden is not None:
                grad_hidden[rows] = gradient @ weight
            if grad_weight is not None:
                grad_weight += gradient.T @ hidden_states[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nll)
        ctx.weight_dtype = weight.dtype
        return loss, nll

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
