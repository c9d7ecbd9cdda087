"""The uniform affine grid that weights are rounded to: one for all solvers, so that they differ in their choices alone.

Decisions:
- A value is `scale * (code - zero)`, code and zero being integers from 0 to 2 ** bits - 1; 0 is always on the grid.
- Scales are rounded to the dtype of the checkpoint when the grid is fitted, so a solver sees what will be stored.
- Groups are runs of columns in the order of the weight, fitted before any solver changed it. A solver may visit
  columns in another order; the groups stay.
- A group of zeros gets the range -1 to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix

RangeRule = Literal["minmax", "percentile", "mse"]

SHRINKS = tuple(percent / 100 for percent in range(100, 20, -1))
"""Shares of the full range that a search tries."""

ERROR_NORM = 2.4
"""Power of the absolute error whose sum the `mse` range makes least: between the mean square and the largest."""

SMALLEST_SCALE = 2.0**-126
"""Smallest normal float32: quotients by less are not reliable."""


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """How the grid of a weight is laid.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    bits: int = 4
    """Bits of a code, 1 to 8."""
    group_size: int | None = None
    """Columns that share a scale; None for whole rows."""
    symmetric: bool = False
    """Put 0 at the middle code of every group."""
    range: RangeRule = "minmax"
    """What the grid spans: all weights of a group, a central share of them, or the range of least error."""
    percentile: float = 99.9
    """Percent of a group's weights inside the `percentile` range; what is cut off is cut half at each end."""
    per_tensor: bool = False
    """One scale for the whole weight."""
    scale_dtype: torch.dtype = torch.float32
    """Dtype of the stored scales."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 1 <= self.bits <= 8:
            raise PerplabError(f"bits is {self.bits}", "give 1 to 8")
        if self.group_size is not None and self.group_size < 1:
            raise PerplabError(f"group_size is {self.group_size}", "give 1 or more, or None for whole rows")
        if self.per_tensor and self.group_size is not None:
            raise PerplabError("per_tensor and group_size are both given", "give one of them")
        if not 0 <= self.percentile <= 100:
            raise PerplabError(f"percentile is {self.percentile}", "give 0 to 100")


@dataclass(frozen=True, eq=False)
class AffineGrid:
    """A grid fitted to a weight.

    Args:
        scale: (out, groups), in the dtype of the checkpoint.
        zero: (out, groups) uint8, the code of 0.
        bits: of a code.
        columns: of the weight, a multiple of the groups.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    columns: int

    @classmethod
    def fit(cls, weight: Tensor, options: GridOptions) -> Self:
        """Lay the grid of `weight`, (out, in), any float dtype.

        Raises:
            PerplabError: the weight is not finite, its columns are no multiple of the group size, or its range does not
                fit the dtype of the scales.
        """
        if options.range == "mse":
            return cls.fit_least_error(weight, options, lambda error: error.abs_().pow_(ERROR_NORM).sum(-1))
        grouped = _grouped(weight, options)
        percent = options.percentile if options.range == "percentile" else 100.0
        return cls._shared(weight, options.bits, *_scale_and_zero(*_central_range(grouped, percent), options))

    @classmethod
    def fit_least_error(cls, weight: Tensor, options: GridOptions, error: Callable[[Tensor], Tensor]) -> Self:
        """Lay the grid whose range, among shrunken ones, has the least rounding error in the caller's measure.

        Args:
            weight: (out, in), any float dtype.
            options: all but its `range`.
            error: takes the rounding errors, (out, groups, columns of a group), and gives their size, (out, groups).

        Raises:
            PerplabError: as in `fit`.
        """
        grouped = _grouped(weight, options)
        low, high = _central_range(grouped, 100.0)
        best_scale, best_zero = _scale_and_zero(low, high, options)
        least = torch.full_like(low, torch.inf)
        for shrink in SHRINKS:
            scale, zero = _scale_and_zero(low * shrink, high * shrink, options)
            size = error(_nearest(grouped, scale, zero, options.bits).sub_(grouped))
            better = size < least
            least = torch.where(better, size, least)
            best_scale = torch.where(better, scale, best_scale)
            best_zero = torch.where(better, zero, best_zero)
        return cls._shared(weight, options.bits, best_scale, best_zero)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.columns // self.scale.shape[1]

    def codes(self, values: Tensor) -> Tensor:
        """Codes of the grid values nearest to `values`, (out, in): uint8, (out, in)."""
        return _codes(self._by_group(values), self.scale, self.zero, self.bits).to(torch.uint8).view(values.shape)

    def project(self, values: Tensor) -> Tensor:
        """The grid values nearest to `values`, (out, in), in the dtype of `values`."""
        return _nearest(self._by_group(values), self.scale, self.zero, self.bits).view(values.shape)

    def quantized(self, codes: Tensor) -> QuantizedMatrix:
        """The matrix that `codes`, (out, in) uint8, stand for on this grid."""
        return QuantizedMatrix(codes, self.scale, self.zero, self.bits)

    def column_rounder(self, order: Tensor, dtype: torch.dtype) -> "ColumnRounder":
        """The grid for columns that are visited one at a time, in `order`, a permutation of all of them."""
        scale = self.scale.T.to(dtype).contiguous()
        steps_below = self.zero.T.to(dtype).contiguous()
        steps_above = 2**self.bits - 1 - steps_below
        by_group = list(zip(scale, -steps_below, steps_above, strict=True))
        return ColumnRounder([by_group[group] for group in (order // self.group_size).tolist()])

    def _by_group(self, values: Tensor) -> Tensor:
        return values.reshape(self.scale.shape[0], -1, self.group_size)

    @classmethod
    def _shared(cls, weight: Tensor, bits: int, scale: Tensor, zero: Tensor) -> Self:
        """The grid of `weight`, whose rows share scales where there are fewer scales than rows."""
        shape = (len(weight), scale.shape[1])
        return cls(scale.expand(shape).contiguous(), zero.expand(shape).contiguous(), bits, weight.shape[1])


@dataclass(frozen=True, eq=False)
class ColumnRounder:
    """A grid turned on its side, so that rounding a column touches contiguous memory and converts nothing.

    Args:
        columns: for each column in the order of visiting its scale and the least and greatest multiple of it, each
            (out,) in the dtype of the values to round.
    """

    columns: list[tuple[Tensor, Tensor, Tensor]]

    def round_into(self, destination: Tensor, values: Tensor, visit: int) -> None:
        """Write into `destination`, (out,), the grid values nearest to `values`, (out,), of the column at `visit`."""
        scale, lowest, highest = self.columns[visit]
        torch.div(values, scale, out=destination)
        destination.round_()
        torch.clamp(destination, lowest, highest, out=destination)
        destination.mul_(scale)


def _grouped(weight: Tensor, options: GridOptions) -> Tensor:
    """`weight` as (out, groups, columns of a group), or (1, 1, all) for one scale, float32 or float64; checked."""
    out, columns = weight.shape
    finite = weight.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise PerplabError(
            f"the weight holds {weight[row, column].item()} at row {row}, column {column}",
            "repair the checkpoint, or leave this layer out",
        )
    size = options.group_size or columns
    if columns % size:
        raise PerplabError(
            f"group_size {size} does not divide the weight's {columns} columns",
            "give a divisor, or None for whole rows",
        )
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return wide.reshape(1, 1, -1) if options.per_tensor else wide.reshape(out, columns // size, size)


def _central_range(grouped: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Ends of the central `percent` of each group's weights, each (out, groups)."""
    size = grouped.shape[-1]
    cut = min(round(size * (1 - percent / 100) / 2), (size - 1) // 2)
    if not cut:
        return grouped.amin(-1), grouped.amax(-1)
    return grouped.kthvalue(cut + 1, dim=-1).values, grouped.kthvalue(size - cut, dim=-1).values


def _scale_and_zero(low: Tensor, high: Tensor, options: GridOptions) -> tuple[Tensor, Tensor]:
    """Scales in the dtype of the checkpoint and zeros, uint8, of ranges that are widened until they hold 0."""
    highest_code = 2**options.bits - 1
    low, high = low.clamp(max=0), high.clamp(min=0)
    if options.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = high == low
    low, high = low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)
    information = torch.finfo(options.scale_dtype)
    smallest = max(information.smallest_normal * information.eps, SMALLEST_SCALE)
    scale = (high / highest_code - low / highest_code).clamp(min=smallest).to(options.scale_dtype)
    if not scale.isfinite().all():
        raise PerplabError(
            f"the weight reaches {torch.maximum(high, -low).max().item():.3g}, too much for scales in "
            f"{str(options.scale_dtype).removeprefix('torch.')}",
            "convert the model to bfloat16 or float32 first",
        )
    if options.symmetric:
        zero = torch.full_like(scale, 2 ** (options.bits - 1))
    else:
        zero = (-low / scale.to(low.dtype)).round().clamp(0, highest_code)
    return scale, zero.to(torch.uint8)


def _codes(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes of (out, groups, columns of a group), in the dtype of `grouped`."""
    quotient = grouped / scale.unsqueeze(-1).to(grouped.dtype)
    return quotient.round_().add_(zero.unsqueeze(-1)).clamp_(0, 2**bits - 1)


def _nearest(grouped: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return _codes(grouped, scale, zero, bits).sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1).to(grouped.dtype))
