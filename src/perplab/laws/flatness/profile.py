"""The loss around a model: how it rises along random directions, at distances that mean the same in every layer.

- A direction is normal noise, each filter of which (the weights of one output of a matrix, or of one token of an
  embedding) is scaled to the norm of the model's own filter (Li et al. 2018, arXiv 1712.09913). A radius of 0.1 moves
  every filter by a tenth of its length. Biases and gains of norms stay.
- A direction is followed both ways and the two losses are averaged: what is left of the slope does not count as
  sharpness.
- Intervals are over directions, for the text as given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError
from perplab.laws.flatness.batches import Batch, predictions
from perplab.laws.flatness.differentiation import ParameterFilter, Parameters, costs, differentiable
from perplab.laws.flatness.estimate import LEVEL, Floats
from perplab.scoring.bootstrap import Interval

RADII = (0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class ProfilePoint:
    """The loss at one distance.

    Attributes:
        radius: distance, in lengths of the model's own filters.
        loss: mean over directions, in nats per token.
        interval: where the mean over all directions lies, at 95 %; None for one direction.
    """

    radius: float
    loss: float
    interval: Interval | None


def sharpness_profile(
    model: nn.Module,
    batches: Sequence[Batch],
    radii: Sequence[float] = RADII,
    *,
    directions: int = 5,
    parameters: ParameterFilter | None = None,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> list[ProfilePoint]:
    """The mean loss over all labels of `batches` at distances from `model` along random directions.

    Args:
        model: as for `hessian_trace`; its weights are moved, and put back to the bit.
        batches: the text.
        radii: distances, above 0.
        directions: random directions, the same for every radius.
        parameters: which parameters to move, by name; None for all.
        seed: of the directions.
        watch: told of directions done.

    Returns:
        A point for radius 0, then one for each radius.

    Raises:
        PerplabError: a radius is not above 0, there is no direction, or as for `hessian_trace`.
    """
    if not radii or min(radii) <= 0:
        raise PerplabError(f"a profile at the radii {list(radii)}", "give distances above 0")
    if directions < 1:
        raise PerplabError(f"a profile along {directions} directions", "give 1 or more")
    chosen, number = Parameters.of(model, parameters), predictions(batches)
    generator = torch.Generator(chosen.device).manual_seed(seed)
    transposed = {id(part.weight) for part in model.modules() if isinstance(part, Conv1D)}
    before = [tensor.detach().clone() for tensor in chosen.tensors]
    losses = np.empty((directions, len(radii)))
    with differentiable(model, chosen), torch.no_grad():
        at_rest = _loss(model, batches, number)
        try:
            for place in range(directions):
                direction = [_step(tensor, generator, id(tensor) in transposed) for tensor in chosen.tensors]
                for column, radius in enumerate(radii):
                    moved = []
                    for signed in (radius, -radius):
                        _move(chosen.tensors, before, direction, signed)
                        moved.append(_loss(model, batches, number))
                    losses[place, column] = np.mean(moved)
                _move(chosen.tensors, before, direction, 0.0)
                if watch is not None:
                    watch(place + 1, directions)
        finally:
            _move(chosen.tensors, before, before, 0.0)
    points = [_point(radius, losses[:, column]) for column, radius in enumerate(radii)]
    return [ProfilePoint(0.0, at_rest, Interval(at_rest, at_rest, LEVEL)), *points]


def _loss(model: nn.Module, batches: Sequence[Batch], number: int) -> float:
    return float(sum(costs(model, batch).double().sum() for batch in batches)) / number


def _step(tensor: Tensor, generator: torch.Generator, transposed: bool) -> Tensor:
    """A random step as long as the tensor, filter by filter."""
    if tensor.ndim < 2:
        return torch.zeros_like(tensor)
    noise = torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)
    inputs = 0 if transposed else -1
    lengths = noise.norm(dim=inputs, keepdim=True)
    step: Tensor = noise * tensor.norm(dim=inputs, keepdim=True) / lengths.clamp(min=torch.finfo(tensor.dtype).tiny)
    return step


def _move(tensors: Sequence[Tensor], before: Sequence[Tensor], direction: Sequence[Tensor], radius: float) -> None:
    for tensor, start, step in zip(tensors, before, direction, strict=True):
        tensor.copy_(start + radius * step if radius else start)


def _point(radius: float, losses: Floats) -> ProfilePoint:
    mean, count = float(losses.mean()), len(losses)
    if count < 2:
        return ProfilePoint(radius, mean, None)
    reach = float(student.ppf((1 + LEVEL) / 2, count - 1) * losses.std(ddof=1) / np.sqrt(count))
    return ProfilePoint(radius, mean, Interval(mean - reach, mean + reach, LEVEL))
