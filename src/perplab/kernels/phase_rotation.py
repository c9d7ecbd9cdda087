"""Turning pairs of components by an angle that depends on their own phase: z = r e^{i phi} to r e^{i (delta phi + b)}.

Decisions:
- Written as a turn of z by (delta - 1) phi + b. The magnitude needs no square root, zero stays zero, and delta = 1 with
  b = 0 gives back the input to the bit.
- The gradient is in closed form. Through the phase it is r^2 times something divided by r^2, which stays of the size of
  the incoming gradient however small z is; taken apart by autograd, the two factors overflow and vanish.
- Only the inputs are kept for the backward pass, which computes the angles again.
- Angles are float32 or wider, whatever the dtype of the states.
- Plain elementwise operations: `torch.compile` fuses them into one pass over memory each way.
- A pair is (i, i + width / 2), as in `perplab.models.parts.rotate` and the Llama family.
- The map is not continuous where phi jumps from pi to -pi, unless delta is a whole number. That belongs to the formula.
"""

from typing import Any

import torch
from torch import Tensor


def phase_rotation_reference(states: Tensor, delta: Tensor, bias: Tensor | None = None) -> Tensor:
    """Magnitude and phase, adapted and put together again: the definition that `phase_rotation` is held to.

    Args:
        states: (..., 2 * pairs).
        delta: factor on the phase; broadcasts to (..., pairs).
        bias: angle added to it; broadcasts to (..., pairs). None for no angle.

    Returns:
        Shape and dtype of `states`.
    """
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    magnitude = torch.hypot(first, second)
    phase = delta * torch.atan2(second, first) + (0.0 if bias is None else bias)
    return torch.cat((magnitude * phase.cos(), magnitude * phase.sin()), dim=-1).to(states.dtype)


def phase_rotation(states: Tensor, delta: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, safe to differentiate at and near zero; arguments as for the reference."""
    turned: Tensor = _PhaseRotation.apply(states, delta, bias)  # type: ignore[no-untyped-call]
    return turned


class _PhaseRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, delta: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, delta, bias)
        first, second = _halves(states)
        _, cos, sin = _turn(first, second, delta, bias)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        states, delta, bias = ctx.saved_tensors
        first, second = _halves(states)
        phase, cos, sin = _turn(first, second, delta, bias)
        grad_first, grad_second = _halves(grad)
        back_first, back_second = grad_first * cos + grad_second * sin, grad_second * cos - grad_first * sin
        grad_angle = first * back_second - second * back_first
        smallest = torch.finfo(first.dtype).tiny
        through_phase = grad_angle * (delta - 1) / (first * first + second * second).clamp_min(smallest)
        grad_states = torch.cat((back_first - through_phase * second, back_second + through_phase * first), dim=-1)
        grad_delta = (grad_angle * phase).sum_to_size(delta.shape).to(delta.dtype)
        grad_bias = None if bias is None else grad_angle.sum_to_size(bias.shape).to(bias.dtype)
        return grad_states.to(states.dtype), grad_delta, grad_bias


def _halves(states: Tensor) -> tuple[Tensor, Tensor]:
    """First and second component of each pair, in float32 or wider."""
    first, second = states.to(torch.promote_types(states.dtype, torch.float32)).chunk(2, dim=-1)
    return first, second


def _turn(first: Tensor, second: Tensor, delta: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair's phase, and cosine and sine of the angle it is turned by."""
    phase = torch.atan2(second, first)
    angle = (delta - 1) * phase
    if bias is not None:
        angle = angle + bias
    return phase, angle.cos(), angle.sin()
