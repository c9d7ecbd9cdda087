"""GPTQ (arXiv 2210.17323): columns in turn, each making up for the errors of those before it.

Decisions:
- With the damped second moment factored as U U^T, U upper triangular, GPTQ's codes come from a feedback of what
  happened to the original weights: `value_j = W_j - sum over k < j of U[k, j] / U[j, j] * (W_hat_k - W_k)`
  (arXiv 2307.13304, theorem 6). So one Cholesky factor, taken from the last column to the first, does for the factor of
  an inverse, and nothing is inverted.
- A block of columns first takes the changes of all columns before it in one matrix product.
- Inputs that are always 0 couple to nothing: their weights are rounded to the nearest grid value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.feedback import BLOCK, RoundInto, round_in_turn, visiting_order
from perplab.compression.solvers.problem import InputMoments, Solution, checked, rounded_solution
from perplab.errors import PerplabError


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Settings of GPTQ.

    Raises:
        PerplabError: a damping below 0.
    """

    damping: float = 0.01
    """What is added to the diagonal of the second moment, as a share of its mean."""
    act_order: bool = False
    """Visit inputs of large second moment first."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.damping < 0:
            raise PerplabError(f"damping is {self.damping}", "give 0 or more")

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in). See `Solver.solve`."""
        weight, second = checked(weight, moments)
        grid = AffineGrid.fit(weight, grid_options)
        order = visiting_order(second, self.act_order)
        coupling, _ = feedback(second, order, self.damping)
        rounder = grid.column_rounder(order, weight.dtype)
        return rounded_solution(grid, round_with_feedback(weight, order, coupling, rounder.round_into), weight, second)


def feedback(second: Tensor, order: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """GPTQ's coupling, and what is left of each input that the inputs visited after it do not explain.

    Args:
        second: (in, in).
        order: of visiting, (in,).
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        In the order of visiting: the coupling, (in, in), of which only what is below the diagonal is meant, and the
        energy of each input beyond its best prediction from later ones, (in,).

    Raises:
        PerplabError: the damped second moment is not positive definite.
    """
    backward = order.flip(0)
    damped = second[backward.unsqueeze(1), backward]
    diagonal = damped.diagonal()
    mean = diagonal.mean().item()
    diagonal += damping * mean if mean else 1.0
    factor, failure = torch.linalg.cholesky_ex(damped, upper=True)
    del damped, diagonal  # each copy of the second moment can be larger than the layer
    if failure:
        raise PerplabError(
            f"the second moment of the layer's inputs is singular with damping {damping}",
            "give a larger damping, or more calibration text",
        )
    roots = factor.diagonal().clone()
    factor /= roots.unsqueeze(1)
    return factor.flip(0, 1), roots.square().flip(0)


def round_with_feedback(weight: Tensor, order: Tensor, coupling: Tensor, round_into: RoundInto) -> Tensor:
    """Visit the columns of `weight`, (out, in), in `order`: the rounded weight, (out, in)."""
    original = weight.T[order]
    rounded, changes = torch.empty_like(original), torch.empty_like(original)
    for start in range(0, len(original), BLOCK):
        block = slice(start, start + BLOCK)
        values = torch.addmm(original[block], coupling[block, :start], changes[:start], alpha=-1)
        round_in_turn(
            values, rounded[block], changes[block], original[block], coupling[block, block], round_into, start
        )
    result = torch.empty_like(rounded)
    result[order] = rounded
    return result.T
