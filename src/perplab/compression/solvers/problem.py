"""What every solver is asked and what it answers: one linear layer, with its inputs as a second moment.

The output of a layer with weight W on inputs X, (in, tokens), changes by `||(W - W_hat) X||^2`, which is
`trace((W - W_hat) S (W - W_hat)^T)` with `S = X X^T`. So a solver needs S and never the inputs.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What is kept of a layer's calibration inputs.

    Args:
        second: (in, in) float32 or float64, the sum over tokens of x x^T.
        mean_magnitude: (in,), the mean over tokens of |x|.
        count: tokens.
    """

    second: Tensor
    mean_magnitude: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class Solution:
    """A layer's weight in few bits.

    Args:
        matrix: the codes.
        outliers: (out, in) sparse COO, what is added to the spread-out codes at full precision; None for nothing.
        trace: error relative to the output, `||(W - W_hat) X||^2 / ||W X||^2`, after each sweep of a method that has
            sweeps, and last that of this solution.
        input_scale: (in,), by which the columns of `matrix` were multiplied before rounding and by which the layer's
            inputs must be divided; None for ones.
    """

    matrix: QuantizedMatrix
    outliers: Tensor | None
    trace: tuple[float, ...]
    input_scale: Tensor | None = None

    @property
    def relative_error(self) -> float:
        """Change of the layer's output relative to the output, squared, on the calibration inputs."""
        return self.trace[-1]

    def weight(self) -> Tensor:
        """The weight that this stands for on the layer's original inputs, (out, in), float32 (float64 for such scales).

        Products of scale and code are not rounded to the dtype of the scales.
        """
        dtype = torch.promote_types(self.matrix.scale.dtype, torch.float32)
        wide = QuantizedMatrix(self.matrix.codes, self.matrix.scale.to(dtype), self.matrix.zero, self.matrix.bits)
        weight = wide.dequantized()
        if self.outliers is not None:
            weight += self.outliers.to(dtype).to_dense()
        return weight if self.input_scale is None else weight / self.input_scale.to(dtype)


class Solver(Protocol):
    """A method with its settings: a frozen dataclass."""

    def solve(self, weight: Tensor, moments: InputMoments, grid_options: GridOptions) -> Solution:
        """Round `weight`, (out, in), to a grid.

        Computes in float64 where the weight is float64, and in float32 otherwise.

        Raises:
            PerplabError: weight or moments are not finite or do not fit each other, or the grid cannot be laid.
        """
        ...


def checked(weight: Tensor, moments: InputMoments) -> tuple[Tensor, Tensor]:
    """Weight and second moment, both in the dtype that solvers compute in.

    Raises:
        PerplabError: the moments are of another number of inputs, not finite, or negative where that cannot be.
    """
    columns = weight.shape[1]
    if moments.second.shape != (columns, columns):
        raise PerplabError(
            f"the weight has {columns} inputs and the second moment is {'x'.join(map(str, moments.second.shape))}",
            "calibrate this layer on its own inputs",
        )
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    second = moments.second.to(dtype)
    finite = second.isfinite().all() and moments.mean_magnitude.isfinite().all()
    if not finite or (second.diagonal() < 0).any():
        raise PerplabError(
            "the moments of the layer's inputs are not finite or not positive",
            "run the model in float32 or bfloat16 for calibration, and sum in float32",
        )
    return weight.to(dtype), second


def rounded_solution(grid: AffineGrid, values: Tensor, weight: Tensor, second: Tensor) -> Solution:
    """The solution that rounds `values`, (out, in), to the nearest of `grid` in place of `weight`."""
    return Solution(grid.quantized(grid.codes(values)), None, (relative_error(weight, grid.project(values), second),))


def relative_error(weight: Tensor, effective: Tensor, second: Tensor) -> float:
    """`||(weight - effective) X||^2 / ||weight X||^2`; both (out, in), `second` (in, in), all of one dtype.

    An output of zeros has error 0 where it stays so, and infinity where it does not.
    """
    return ratio(output_energy(effective - weight, second), output_energy(weight, second))


def ratio(change: float, output: float) -> float:
    """`change / output`, where nothing of nothing is 0."""
    if output:
        return change / output
    return math.inf if change else 0.0


def output_energy(weight: Tensor, second: Tensor) -> float:
    """`||weight X||^2` summed over outputs and tokens, never below 0."""
    products = weight @ second
    return max(0.0, products.mul_(weight).sum(dtype=torch.float64).item())
