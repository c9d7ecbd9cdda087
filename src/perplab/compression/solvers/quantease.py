"""QuantEase (arXiv 2309.01885): cyclic coordinate descent on the error of a layer's output.

Decisions:
- It starts from the weights themselves or from another solver's answer, and then never ends worse than that.
- Some sweeps go without rounding. The best rounded weight on the way is what is returned.
- Sweeps that could change nothing are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.descent import Sweeps, copy_into, sweep
from perplab.compression.solvers.feedback import visiting_order
from perplab.compression.solvers.problem import InputMoments, Solution, Solver, checked, output_energy, ratio


@dataclass(frozen=True, kw_only=True)
class QuantEase(Sweeps):
    """Settings of QuantEase; see `Sweeps` for the others."""

    start: Solver | None = None
    """Whose answer, moved to the grid, descent begins with; None for the weights as they are, which are not on it."""

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in). See `Solver.solve`."""
        weight, second = checked(weight, moments)
        grid = AffineGrid.fit(weight, grid_options)
        order = visiting_order(second, self.act_order)
        round_into = grid.column_rounder(order, weight.dtype).round_into
        target = weight.T[order]
        best, error, least = target, 0.0, torch.inf
        if self.start is not None:
            found = grid.project(self.start.solve(weight, moments, grid_options).weight().to(weight.dtype))
            best = found.T[order]
            error = least = output_energy(found - weight, second)
        current = best.clone()
        ordered = second[order.unsqueeze(1), order] if self.act_order else second
        errors = []
        settled = False
        for number in range(self.sweeps):
            free = self.is_free(number)
            if settled and not free:
                continue
            gain, moved = sweep(current, target, ordered, copy_into if free else round_into)
            error = max(0.0, error - gain)
            errors.append(error)
            settled = not (free or moved)
            if error < least and not free:
                least, best = error, current.clone()
        rounded = torch.empty_like(best)
        rounded[order] = best
        output = output_energy(weight, second)
        trace = tuple(ratio(value, output) for value in (*errors, least))
        return Solution(grid.quantized(grid.codes(rounded.T)), None, trace)
