"""QuantEase with outliers (arXiv 2309.01885, algorithm 3): a weight on the grid plus a sparse one at full precision.

Decisions:
- A sweep over the rounded part, with what the outliers leave as its target, and a step of iterative hard thresholding
  on the outliers take turns. The step is `H <- largest(H - (W_hat + H - W) S / lambda_max(S))`.
- Single outliers: the grid's range leaves out as large a share of every group's weights as there are outliers. Whole
  columns: the grid is fitted to the other columns, and again whenever the choice of columns changes.
- Outliers are always held as they will be stored, in the dtype of the scales.
- The best pair on the way whose first part is rounded is what is returned.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.descent import Sweeps, copy_into, sweep
from perplab.compression.solvers.feedback import visiting_order
from perplab.compression.solvers.problem import InputMoments, Solution, checked, output_energy, ratio
from perplab.errors import PerplabError

POWER_STEPS = 50
MARGIN = 1.05
"""By how much the largest eigenvalue may be above where that many power steps have come."""


@dataclass(frozen=True, kw_only=True)
class QuantEaseOutliers(Sweeps):
    """Settings of QuantEase with outliers; see `Sweeps` for the others.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    share: float = 0.01
    """Share of the weights, or of the columns, that are outliers."""
    columns: bool = False
    """Choose whole columns in place of single weights."""
    step: float = 1.0
    """Length of the outliers' steps; up to 1 no step makes the error grow."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise PerplabError(f"the share of outliers is {self.share}", "give a share from 0 to 1")
        if self.step <= 0:
            raise PerplabError(f"step is {self.step}", "give more than 0, at most 1")

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in). See `Solver.solve`."""
        weight, second = checked(weight, moments)
        order = visiting_order(second, self.act_order)
        ordered = second[order.unsqueeze(1), order] if self.act_order else second
        target = weight.T[order]
        step = self.step / max(largest_eigenvalue(second), torch.finfo(second.dtype).tiny)
        outliers = self._largest(target, grid_options)
        current = target - outliers
        grid = self._grid(weight, outliers, order, grid_options)
        best, least, errors = (current, outliers, grid), torch.inf, []
        for number in range(self.sweeps):
            free = self.is_free(number)
            round_into = copy_into if free else grid.column_rounder(order, weight.dtype).round_into
            sweep(current, target - outliers, ordered, round_into)
            change = current + outliers - target
            gradient = ordered @ change
            errors.append(max(0.0, torch.sum(gradient * change, dtype=torch.float64).item()))
            if errors[-1] < least and not free:
                best, least = (current.clone(), outliers, grid), errors[-1]
            columns_before = outliers.any(dim=1)
            outliers = self._largest(outliers.sub(gradient, alpha=step), grid_options)
            if self.columns and not torch.equal(outliers.any(dim=1), columns_before):
                grid = self._grid(weight, outliers, order, grid_options)
        current, outliers, grid = best
        inverse = order.argsort()
        output = output_energy(weight, second)
        return Solution(
            grid.quantized(grid.codes(current[inverse].T)),
            outliers[inverse].T.to(grid_options.scale_dtype).to_sparse(),
            tuple(ratio(value, output) for value in (*errors, least)),
        )

    def _largest(self, values: Tensor, grid_options: GridOptions) -> Tensor:
        """`values`, (in, out), with all but the largest entries or columns of the weight set to 0."""
        sizes = values.norm(dim=1) if self.columns else values.abs().flatten()
        chosen = sizes.topk(round(self.share * len(sizes)), sorted=False).indices
        mask = torch.zeros_like(sizes, dtype=torch.bool).index_fill_(0, chosen, True)
        mask = mask.unsqueeze(1) if self.columns else mask.view(values.shape)
        return values.where(mask, 0.0).to(grid_options.scale_dtype).to(values.dtype)

    def _grid(self, weight: Tensor, outliers: Tensor, order: Tensor, grid_options: GridOptions) -> AffineGrid:
        """The grid of the weights that are not outliers."""
        if self.columns:
            chosen = order[outliers.any(dim=1)]
            return AffineGrid.fit(weight.index_fill(1, chosen, 0.0), grid_options)  # 0 is always in range
        if grid_options.range == "minmax":
            grid_options = replace(grid_options, range="percentile", percentile=100 * (1 - self.share))
        return AffineGrid.fit(weight, grid_options)


def largest_eigenvalue(second: Tensor) -> float:
    """An upper estimate of the largest eigenvalue of a positive semi-definite matrix, by power iteration."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(second), generator=generator, dtype=second.dtype).to(second.device)
    size = vector.norm()
    for _ in range(POWER_STEPS):
        vector = second @ (vector / size)
        size = vector.norm()
        if not size:
            return 0.0
    return MARGIN * float(size)
