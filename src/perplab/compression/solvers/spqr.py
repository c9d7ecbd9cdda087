"""SpQR (arXiv 2306.03078): GPTQ that lets the weights it would hurt most stay, on a grid of small groups.

Decisions:
- A weight stays if rounding it, with all later columns making up for it, costs more than `threshold` times what a
  typical weight carries. It keeps the value it has when it is visited, its code is the zero point, and later columns
  see no error of it.
- The grid leaves out likely outliers: weights whose group would lose more than that by the fit without them. Only the
  least and the greatest weight of a group move its range, so only they are left out in turn.
- Scales are rounded to few bits between the least and the greatest of each run of rows, and so are zero points, which
  stay whole numbers. They are stored as other scales are.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.feedback import visiting_order
from perplab.compression.solvers.gptq import feedback, round_with_feedback
from perplab.compression.solvers.problem import InputMoments, Solution, checked, relative_error
from perplab.errors import PerplabError


@dataclass(frozen=True, kw_only=True)
class SpQR:
    """Settings of SpQR. Its groups are those of the grid; 16 columns in the paper.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    threshold: float = 0.2
    """Cost of rounding above which a weight stays, relative to the mean of what all weights carry."""
    leave_one_out: bool = True
    """Fit the grid without likely outliers."""
    statistics_bits: int = 3
    """Bits of a scale and of a zero point."""
    statistics_rows: int = 16
    """Rows whose scales share a range."""
    damping: float = 0.01
    """What is added to the diagonal of the second moment, as a share of its mean."""
    act_order: bool = False
    """Visit inputs of large second moment first."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("threshold", "damping"):
            if getattr(self, name) < 0:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 0 or more")
        for name in ("statistics_bits", "statistics_rows"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in). See `Solver.solve`."""
        weight, second = checked(weight, moments)
        order = visiting_order(second, self.act_order)
        coupling, energy = feedback(second, order, self.damping)
        price = torch.empty_like(energy)
        price[order] = energy
        limit = self.threshold * (weight.var(dim=0, correction=0) * price).mean()
        ordinary = weight
        if self.leave_one_out:
            ordinary = weight.masked_fill(_likely_outliers(weight, price, limit, grid_options), 0.0)
        grid = self._grid(ordinary, grid_options)
        rounder = grid.column_rounder(order, weight.dtype)
        stays = torch.empty(weight.T.shape, dtype=torch.bool, device=weight.device)

        def round_into(destination: Tensor, values: Tensor, visit: int) -> None:
            rounder.round_into(destination, values, visit)
            torch.gt((values - destination).square_().mul_(energy[visit]), limit, out=stays[visit])
            stored = values.to(grid_options.scale_dtype).to(values.dtype)
            torch.where(stays[visit], stored, destination, out=destination)

        rounded = round_with_feedback(weight, order, coupling, round_into)
        outlier = stays[order.argsort()].T
        codes = grid.codes(rounded.masked_fill(outlier, 0.0))
        outliers = rounded.where(outlier, 0.0).to(grid_options.scale_dtype).to_sparse()
        return Solution(grid.quantized(codes), outliers, (relative_error(weight, rounded, second),))

    def _grid(self, weight: Tensor, grid_options: GridOptions) -> AffineGrid:
        """The grid of `weight` with scales and zero points that are few a run of rows."""
        grid = AffineGrid.fit(weight, grid_options)
        scale = grid.scale.to(torch.promote_types(grid.scale.dtype, torch.float32))
        empty = ~weight.view(*scale.shape, -1).any(dim=-1)
        typical = scale.masked_fill(empty, torch.nan).nanmedian(dim=0, keepdim=True).values
        scale = torch.where(
            empty & typical.isfinite(), typical, scale
        )  # so that no group of zeros widens a run's range
        zero = self._rounded_statistic(grid.zero.float()).round()
        scale = self._rounded_statistic(scale).to(grid.scale.dtype)
        return replace(grid, scale=scale, zero=zero.to(torch.uint8))

    def _rounded_statistic(self, statistic: Tensor) -> Tensor:
        """`statistic`, (out, groups), on a grid from the least to the greatest of each run of rows."""
        runs = []
        for run in torch.split(statistic, self.statistics_rows):
            least, greatest = run.aminmax(dim=0, keepdim=True)
            step = ((greatest - least) / (2**self.statistics_bits - 1)).clamp(min=torch.finfo(run.dtype).tiny)
            runs.append(((run - least) / step).round().mul(step).add(least))
        return torch.cat(runs)


def _likely_outliers(weight: Tensor, price: Tensor, limit: Tensor, grid_options: GridOptions) -> Tensor:
    """Weights, (out, in) bool, without which the rounding of their group would cost less by more than `limit`.

    Args:
        weight: (out, in).
        price: (in,), cost of a squared error in each column.
        limit: cost that an outlier saves at least.
        grid_options: of the grid.
    """
    size = weight.shape[1] if grid_options.group_size is None else grid_options.group_size
    shape = (len(weight), -1, size)

    def cost(fitted_to: Tensor) -> Tensor:
        error = AffineGrid.fit(fitted_to, grid_options).project(weight).sub_(weight)
        return error.square_().mul_(price).view(shape)

    costs = cost(weight)
    savings = costs.clone()
    grouped = weight.view(shape)
    for extreme in grouped.argmin(-1, keepdim=True), grouped.argmax(-1, keepdim=True):
        without = cost(grouped.scatter(-1, extreme, 0.0).view_as(weight))
        remaining = without.sum(-1, keepdim=True) - without.gather(-1, extreme)
        savings.scatter_(-1, extreme, costs.sum(-1, keepdim=True) - remaining)
    return (savings > limit).view_as(weight)
