"""A linear layer as its singular value decomposition, of which all values and a few vectors train.

This is sparse spectral training (Zhao et al., arXiv 2405.15481). Decisions:

- Vectors are rows. Those that train are parameters of their own and the optimiser knows no others; `active` says where
  they belong. Their rows in the whole matrices are written when the choice changes.
- After each step, vectors have length 1 and values are at least 0: what a vector gains in length is dropped.
- Directions are drawn without replacement, half by singular value and half evenly, so none is forgotten.
- The weight is decomposed anew at the end of a round, because vectors that are only kept at length 1 lose their right
  angles. That leaves the weight as it is, and changes what each value means: so its optimiser state is reset too.
- Memory: the stored weight takes (k + rank) (out + in) numbers, for a square matrix more than twice the dense one, and
  k numbers a token wait for the backward pass. Gradient and each moment take rank (out + in) + k, and not out * in.
"""

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.training.low_rank.config import LowRankConfig
from perplab.training.low_rank.decomposition import thin_svd
from perplab.training.low_rank.layer import ReparameterisedLinear, matrix_of, trained_dtype
from perplab.training.low_rank.spectral_product import spectral_product


class SpectralLinear(ReparameterisedLinear):
    """x right^T diag(values) left + bias.

    Args:
        linear: as for `ReparameterisedLinear`.
        rank: vectors that train at a time, of k = min(out, in).
        generator: draws which.
        singular_share: share of the drawing by singular values.
        enhanced: see `perplab.training.low_rank.spectral_product`.
    """

    undecayed: ClassVar[tuple[str, ...]] = ("left", "right", "values")

    def __init__(
        self,
        linear: nn.Module,
        rank: int,
        generator: torch.Generator,
        singular_share: float = 0.5,
        enhanced: bool = True,
    ) -> None:
        matrix = matrix_of(linear)
        super().__init__(linear, rank)
        self.singular_share, self.enhanced = singular_share, enhanced
        size, dtype = min(matrix.shape), trained_dtype(matrix)
        self.all_left: Tensor
        self.all_right: Tensor
        self.active: Tensor
        self.register_buffer("all_left", matrix.new_empty(size, self.out_features, dtype=dtype))
        self.register_buffer("all_right", matrix.new_empty(size, self.in_features, dtype=dtype))
        self.register_buffer("active", torch.arange(rank, device=matrix.device))
        self.values = nn.Parameter(matrix.new_empty(size, dtype=dtype))
        self.left = nn.Parameter(matrix.new_empty(rank, self.out_features, dtype=dtype))
        self.right = nn.Parameter(matrix.new_empty(rank, self.in_features, dtype=dtype))
        self._decompose(matrix)
        self._draw(generator)

    @classmethod
    def from_linear(cls, linear: nn.Module, rank: int, config: LowRankConfig, generator: torch.Generator) -> Self:
        """The layer that computes what `linear` computes; `linear` is emptied."""
        return cls(linear, rank, generator, config.singular_share, config.enhanced)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        rows = inputs.to(dtype).reshape(-1, self.in_features)
        output = spectral_product(
            rows, self.left, self.right, self.values, self.all_left, self.all_right, self.active, self.enhanced
        )
        output = output.view(*inputs.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias.to(dtype)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The weight it stands for, (out, in)."""
        left, right = self.vectors()
        return (left.T * self.values) @ right

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """All left (k, out) and right (k, in) vectors as they are now."""
        return (
            self.all_left.index_copy(0, self.active, self.left),
            self.all_right.index_copy(0, self.active, self.right),
        )

    @torch.no_grad()
    def after_update(self) -> None:
        """Back to vectors of length 1 and values of at least 0."""
        self.left.copy_(F.normalize(self.left, dim=1))
        self.right.copy_(F.normalize(self.right, dim=1))
        self.values.clamp_(min=0)

    def restart(self, generator: torch.Generator, *, new_round: bool) -> tuple[nn.Parameter, ...]:
        """Train other vectors; at the end of a round decompose the weight before."""
        if new_round:
            self._decompose(self.matrix())
        else:
            self._write_back()
        self._draw(generator)
        return (self.left, self.right, self.values) if new_round else (self.left, self.right)

    def probabilities(self) -> Tensor:
        """(k,) chances of each direction in the first draw of an iteration."""
        values = self.values.detach()
        even = torch.full_like(values, 1 / len(values))
        total = values.sum()
        by_value = values / total if total > 0 else even
        return (1 - self.singular_share) * even + self.singular_share * by_value

    @torch.no_grad()
    def _decompose(self, matrix: Tensor) -> None:
        left, values, right = thin_svd(matrix)
        self.all_left.copy_(left.T)
        self.all_right.copy_(right)
        self.values.copy_(values)

    @torch.no_grad()
    def _write_back(self) -> None:
        self.all_left[self.active] = self.left
        self.all_right[self.active] = self.right

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Choose the vectors that train; the whole matrices have to be up to date."""
        drawn = torch.multinomial(self.probabilities().cpu(), self.rank, replacement=False, generator=generator)
        self.active.copy_(drawn.sort().values)
        self.left.copy_(self.all_left[self.active])
        self.right.copy_(self.all_right[self.active])
