"""Rounding to the nearest grid value, each weight for itself: the baseline of every solver."""

from dataclasses import dataclass

from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.problem import InputMoments, Solution, checked, rounded_solution


@dataclass(frozen=True, kw_only=True)
class RoundToNearest:
    """Round each weight to its nearest grid value."""

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in); the moments only measure the error. See `Solver.solve`."""
        weight, second = checked(weight, moments)
        return rounded_solution(AffineGrid.fit(weight, grid_options), weight, weight, second)
