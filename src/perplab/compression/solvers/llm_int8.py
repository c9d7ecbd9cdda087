"""The weights of LLM.int8() (arXiv 2208.07339): each row divided by its largest magnitude, on 255 of the 256 codes.

What it does with inputs, and the inputs it takes out of the integer product, belong to the running of the layer.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.problem import InputMoments, Solution, checked, rounded_solution
from perplab.errors import PerplabError

WIDENING = 255 / 254
"""A symmetric grid's 255 steps span twice the largest magnitude; here 254 do."""


@dataclass(frozen=True, kw_only=True)
class LLMInt8:
    """Round each weight to the nearest of -127 to 127 parts of its row's largest magnitude."""

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in); the moments only measure the error. See `Solver.solve`.

        Raises:
            PerplabError: also, grid options that ask for anything but 8 bits and whole rows.
        """
        if grid_options.bits != 8 or grid_options.group_size is not None or grid_options.per_tensor:
            raise PerplabError("LLM.int8() has 8 bits and a scale a row", "leave out bits, group_size and per_tensor")
        weight, second = checked(weight, moments)
        grid = AffineGrid.fit(weight * WIDENING, replace(grid_options, symmetric=True, range="minmax"))
        return rounded_solution(grid, weight, weight, second)
