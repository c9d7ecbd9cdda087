"""A matrix as integer codes with a scale and a zero point for each group of its columns.

One form for every method that rounds weights: unsigned codes, so that a symmetric grid is one whose zero point is the
middle code; groups that are equally long runs of columns, so that a whole row is one group of all of them.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix whose entry (i, j) is `scale[i, g] * (codes[i, j] - zero[i, g])`, g being the group of column j.

    Args:
        codes: (out, in) uint8, each below 2 ** bits.
        scale: (out, groups), in the dtype that the matrix has when it is spread out.
        zero: (out, groups) uint8, the code of 0.
        bits: of a code, 1 to 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    def dequantized(self) -> torch.Tensor:
        """The matrix, (out, in), in the dtype of `scale`: the difference of codes is exact in each of them."""
        out, groups = self.scale.shape
        steps = self.codes.view(out, groups, -1).to(torch.int16) - self.zero.unsqueeze(-1).to(torch.int16)
        return (steps.to(self.scale.dtype) * self.scale.unsqueeze(-1)).view(out, -1)
