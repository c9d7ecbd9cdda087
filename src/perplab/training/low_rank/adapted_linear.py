"""A frozen weight plus a product of two thin matrices: LoRA, and ReLoRA where it is merged and begun anew.

Hu et al. (arXiv 2106.09685) and Lialin et al. (arXiv 2307.05695), the latter without a start by full training and with
all of the thin matrices' optimiser state reset. The product is not scaled. Right after a merge `up` is zero, and with
it the gradient of `down`: the first step moves `up` alone.
"""

import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.training.low_rank.config import LowRankConfig
from perplab.training.low_rank.layer import ReparameterisedLinear, matrix_of, trained_dtype


class AdaptedLinear(ReparameterisedLinear):
    """x (base + up down)^T + bias, where `base` is frozen.

    Args:
        linear: as for `ReparameterisedLinear`.
        rank: columns of `up` and rows of `down`.
        generator: draws `down`.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("down", "up")

    def __init__(self, linear: nn.Module, rank: int, generator: torch.Generator) -> None:
        matrix = matrix_of(linear)
        super().__init__(linear, rank)
        dtype = trained_dtype(matrix)
        self.base: Tensor
        self.register_buffer("base", matrix.to(dtype).clone())
        self.down = nn.Parameter(matrix.new_empty(rank, self.in_features, dtype=dtype))
        self.up = nn.Parameter(matrix.new_zeros(self.out_features, rank, dtype=dtype))
        self._begin(generator)

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int, config: LowRankConfig, generator: torch.Generator) -> Self:
        """The layer that computes what `linear` computes; `linear` is emptied."""
        return cls(linear, rank, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        base, down, up = (tensor.to(inputs.dtype) for tensor in (self.base, self.down, self.up))
        return F.linear(inputs, base, self.bias) + F.linear(F.linear(inputs, down), up)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The weight it stands for, (out, in)."""
        return self.base + self.up @ self.down

    @torch.no_grad()
    def restart(self, generator: torch.Generator, *, new_round: bool) -> tuple[nn.Parameter, ...]:
        """Move the product into the frozen weight and begin another one."""
        self.base.copy_(self.matrix())
        self._begin(generator)
        return self.down, self.up

    @torch.no_grad()
    def _begin(self, generator: torch.Generator) -> None:
        drawn = torch.empty(self.down.shape, dtype=self.down.dtype)
        self.down.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))
        self.up.zero_()
