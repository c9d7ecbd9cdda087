"""Adam on a projection of the gradient: GaLore (Zhao et al., arXiv 2403.03507).

Decisions:
- The gradient is projected on its leading singular vectors, on the side where that leaves the smaller matrix; they are
  found anew in the first step of an iteration and the moments are kept.
- The optimiser holds `update`, a small matrix that is zero before each step. After it, what the optimiser has written
  there is the step itself: it is spread out, scaled, and added to the dense weight. So any optimiser will do.
- The whole gradient exists between backward pass and step, as in the paper: optimiser state is what is saved.
"""

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.training.low_rank.config import LowRankConfig
from perplab.training.low_rank.decomposition import thin_svd
from perplab.training.low_rank.layer import ReparameterisedLinear, matrix_of, trained_dtype


class ProjectedLinear(ReparameterisedLinear):
    """A dense weight whose optimiser sees a projection of its gradient.

    Args:
        linear: as for `ReparameterisedLinear`.
        rank: directions that the gradient is projected on.
        scale: factor on what is added to the weight.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("update",)
    unoptimised: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, linear: nn.Module, rank: int, scale: float) -> None:
        matrix = matrix_of(linear)
        super().__init__(linear, rank)
        dtype, (out, in_) = trained_dtype(matrix), matrix.shape
        self.scale = scale
        self.tall = out >= in_  # then directions of the input are chosen, else of the output
        self.dense = nn.Parameter(matrix.to(dtype).clone())
        self.update = nn.Parameter(matrix.new_zeros((out, rank) if self.tall else (rank, in_), dtype=dtype))
        self.basis: Tensor
        self.register_buffer("basis", matrix.new_zeros(rank, min(out, in_), dtype=dtype))

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int, config: LowRankConfig, generator: torch.Generator) -> Self:
        """The layer that computes what `linear` computes; `linear` is emptied."""
        return cls(linear, rank, config.projection_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(inputs, self.dense.to(inputs.dtype), self.bias)

    def matrix(self) -> Tensor:
        """The weight, (out, in)."""
        return self.dense.detach()

    @torch.no_grad()
    def before_update(self, *, first: bool) -> None:
        """Hand the projected gradient to the optimiser; in the first step of an iteration choose the projection."""
        gradient = self.dense.grad
        if gradient is None:  # the layer took no part in this step
            return
        if first:
            left, _, right = thin_svd(gradient)
            self.basis.copy_(right[: self.rank] if self.tall else left[:, : self.rank].T)
        self.update.grad = gradient @ self.basis.T if self.tall else self.basis @ gradient
        self.dense.grad = None

    @torch.no_grad()
    def after_update(self) -> None:
        """Add to the weight what the optimiser has written into `update`."""
        step = self.update @ self.basis if self.tall else self.basis.T @ self.update
        self.dense.add_(step, alpha=self.scale)
        self.update.zero_()
