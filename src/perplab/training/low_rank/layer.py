"""A linear layer whose weight is made of other tensors, which a low-rank method trains in its place.

Decisions:
- The weight is seen as (out, in) features whatever the storage of the layer it came from. `merge` gives that very layer
  back, so a GPT-2 keeps its `Conv1D`s and a Falcon its own linear layers.
- What a method trains is float32 (float64 where the weight is), whatever the weight's dtype.
- The bias stays the parameter it was.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perplab.training.low_rank.config import LowRankConfig


class ReparameterisedLinear(nn.Module, ABC):
    """The part that all low-rank layers share.

    Args:
        linear: an `nn.Linear` or `Conv1D`. It is emptied, and given back by `merge`.
        rank: trained directions.

    Attributes:
        undecayed: names of parameters that weight decay has to leave alone.
        unoptimised: names of parameters that have a gradient and are not the optimiser's.
    """

    undecayed: ClassVar[tuple[str, ...]] = ()
    unoptimised: ClassVar[tuple[str, ...]] = ()

    def __init__(self, linear: Any, rank: int) -> None:
        super().__init__()
        matrix = matrix_of(linear)
        self.out_features, self.in_features = matrix.shape
        self.rank = rank
        self.bias: nn.Parameter | None = linear.bias
        self.weight_dtype = matrix.dtype
        self._origin: tuple[Any] = (linear,)  # in a tuple, so that it is no submodule
        linear.register_parameter("weight", None)

    @classmethod
    @abstractmethod
    def from_linear(cls, linear: nn.Module, rank: int, config: LowRankConfig, generator: torch.Generator) -> Self:
        """The layer that computes what `linear` computes; `linear` is emptied."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The weight it stands for, (out, in), in the dtype that is trained in."""

    def before_update(self, *, first: bool) -> None:
        """Called between backward pass and optimiser step; `first` in an iteration or not."""

    def after_update(self) -> None:
        """Called after each optimiser step."""

    def restart(self, generator: torch.Generator, *, new_round: bool) -> tuple[nn.Parameter, ...]:
        """Begin an iteration; return the parameters whose optimiser state means nothing any more."""
        return ()

    @property
    def weight(self) -> Tensor:
        """A copy of the weight it stands for, (out, in)."""
        return self.matrix().to(self.weight_dtype)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The plain layer: the one it was made from, with the weight it stands for now."""
        (linear,) = self._origin
        weight = self.weight
        linear.weight = nn.Parameter((weight.T if isinstance(linear, Conv1D) else weight).contiguous())
        linear.bias = self.bias
        plain: nn.Module = linear.train(self.training)
        return plain

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them, and the rank."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def matrix_of(linear: Any) -> Tensor:
    """The weight of an `nn.Linear` or `Conv1D` as (out, in), without gradient; a view of it."""
    weight: Tensor = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def trained_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of what is trained for a weight."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
