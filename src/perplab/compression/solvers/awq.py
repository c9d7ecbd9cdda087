"""AWQ (arXiv 2306.00978): before rounding, make the columns larger whose inputs are large.

Column c is multiplied by `mean|x_c| ^ a` and its input divided by that; the exponent a is searched.

Decisions:
- The error of an exponent is that of the layer's output, through the second moment.
- An exponent of 0 is among the candidates, so the answer is never worse than rounding to the nearest.
- Whoever uses the solution divides the inputs, by folding `1 / input_scale` into what comes before the layer.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.problem import InputMoments, Solution, checked, output_energy, ratio
from perplab.errors import PerplabError

LEAST_MAGNITUDE = 1e-4
"""Of an input, relative to the mean of all, so that inputs that are always 0 have a scale."""


class _Attempt(NamedTuple):
    """A scale, the grid of the weight so scaled, and the error of the layer's output."""

    error: float
    scale: Tensor
    grid: AffineGrid


@dataclass(frozen=True, kw_only=True)
class AWQ:
    """Settings of AWQ.

    Raises:
        PerplabError: no exponents to try.
    """

    exponents: int = 20
    """How many exponents are tried, evenly from 0 to below 1."""
    clip: bool = False
    """Then search, for each group, the range of least error of the output, with the other groups left alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.exponents < 1:
            raise PerplabError(f"exponents is {self.exponents}", "give 1 or more")

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in). See `Solver.solve`.

        Raises:
            PerplabError: also, a search of ranges for a grid of one scale.
        """
        if self.clip and grid_options.per_tensor:
            raise PerplabError("clip searches a range for each group and per_tensor has one", "leave out one of them")
        weight, second = checked(weight, moments)
        magnitude = moments.mean_magnitude.to(weight)

        def attempt(scale: Tensor, grid: AffineGrid) -> _Attempt:
            rounded = grid.project(weight * scale).div_(scale)
            return _Attempt(output_energy(rounded.sub_(weight), second), scale, grid)

        scales = (input_scale(magnitude, number / self.exponents) for number in range(self.exponents))
        best = min(
            (attempt(scale, AffineGrid.fit(weight * scale, grid_options)) for scale in scales),
            key=lambda found: found.error,
        )
        if self.clip:
            inputs = second / torch.outer(best.scale, best.scale)
            clipped = attempt(best.scale, _clipped(weight * best.scale, inputs, grid_options))
            best = min(best, clipped, key=lambda found: found.error)
        codes = best.grid.codes(weight * best.scale)
        trace = (ratio(best.error, output_energy(weight, second)),)
        return Solution(best.grid.quantized(codes), None, trace, best.scale)


def input_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """`magnitude ** exponent`, (in,), with the smallest and the largest equally far from 1."""
    mean = magnitude.mean()
    relative = magnitude / mean if mean else torch.ones_like(magnitude)
    scale = relative.clamp(min=LEAST_MAGNITUDE) ** exponent
    return scale / (scale.min() * scale.max()).sqrt()


def _clipped(scaled: Tensor, second: Tensor, grid_options: GridOptions) -> AffineGrid:
    """The grid of `scaled` whose groups each have the range of least error on their own inputs."""
    size = grid_options.group_size or len(second)
    groups = len(second) // size
    blocks = second.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def output_error(error: Tensor) -> Tensor:
        products = torch.einsum("ogi,gij->ogj", error, blocks)
        return products.mul_(error).sum(dim=-1)

    return AffineGrid.fit_least_error(scaled, grid_options, output_error)
