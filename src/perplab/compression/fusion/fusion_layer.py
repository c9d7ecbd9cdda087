"""A block's weights, plus what removed blocks give them: W + B A + the sum over donors of (L R) * D, entry by entry.

- Every parameter of a block gets a parametrisation, so any model's own code computes with the sum, and nothing in the
  model is replaced. Folding writes the sum back as a plain parameter.
- B and L begin at zero: a fused block begins as the block it was, and the gradients of A and R as zero.
- What is trained is float32 whatever the model's dtype, because a bfloat16 weight does not move by small steps.
- Donors are the removed block's own tensors: they cost no memory while the model is whole.
- A matrix is anything with two dimensions or a stack of them (experts). Norms are shifted and take no donor; a bias
  takes the donor's with one coefficient an entry.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError


class FusedMatrix(nn.Module):
    """The parametrisation of a matrix.

    Args:
        weight: (out, in), or (experts, out, in); (in, out) where `transposed`.
        rank: of the update and of every donor's coefficients; at most the smaller side counts.
        transposed: whether the module stores its weight the other way round.
        generator: of the initial A and R.
    """

    def __init__(self, weight: Tensor, rank: int, *, transposed: bool, generator: torch.Generator) -> None:
        super().__init__()
        *stack, rows, columns = weight.shape
        out, into = (columns, rows) if transposed else (rows, columns)
        self._sizes = (stack, out, into, min(rank, out, into))
        self._transposed = transposed
        self.lora_b, self.lora_a = self._factors(weight.device, generator)
        self.coefficients_left, self.coefficients_right = nn.ParameterList(), nn.ParameterList()
        self.donors: list[Tensor] = []

    def add_donor(self, donor: Tensor, generator: torch.Generator) -> None:
        """Take another weight of the same shape, with coefficients that begin at zero."""
        left, right = self._factors(donor.device, generator)
        self.coefficients_left.append(left)
        self.coefficients_right.append(right)
        self.donors.append(donor.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """The fused weight, in the shape and dtype of `weight`."""
        fused = weight.float() + self._oriented(self.lora_b @ self.lora_a)
        for left, right, donor in zip(self.coefficients_left, self.coefficients_right, self.donors, strict=True):
            fused = fused + self._oriented(left @ right) * donor.float()
        return fused.to(weight.dtype)

    def _factors(self, device: torch.device, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
        """(out, rank) zeros and (rank, in) Kaiming-uniform with a = sqrt(5), as LoRA begins."""
        stack, out, into, rank = self._sizes
        uniform = torch.rand(*stack, rank, into, generator=generator) * 2 - 1
        right = (uniform / math.sqrt(into)).to(device)
        return nn.Parameter(torch.zeros(*stack, out, rank, device=device)), nn.Parameter(right)

    def _oriented(self, matrix: Tensor) -> Tensor:
        return matrix.mT if self._transposed else matrix


class FusedVector(nn.Module):
    """The parametrisation of a norm's weight or of a bias: itself, a shift, and donors times coefficients.

    Args:
        weight: (width,).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))
        self.coefficients = nn.ParameterList()
        self.donors: list[Tensor] = []

    def add_donor(self, donor: Tensor) -> None:
        """Take another vector of the same shape, with coefficients that begin at zero."""
        self.coefficients.append(nn.Parameter(torch.zeros_like(donor, dtype=torch.float32)))
        self.donors.append(donor.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """The fused vector, in the shape and dtype of `weight`."""
        fused = weight.float() + self.shift
        for coefficients, donor in zip(self.coefficients, self.donors, strict=True):
            fused = fused + coefficients * donor.float()
        return fused.to(weight.dtype)


def make_trainable(block: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Parametrise every parameter of a block that is not yet; the block computes what it did.

    Args:
        block: of any family.
        rank: of updates and coefficients.
        generator: of what begins at random.
    """
    for slot in _slots(block):
        if parametrize.is_parametrized(slot.module, slot.name):
            continue
        weight = slot.weight.requires_grad_(False)
        fusion = (
            FusedVector(weight)
            if weight.ndim == 1
            else FusedMatrix(weight, rank, transposed=isinstance(slot.module, Conv1D), generator=generator)
        )
        parametrize.register_parametrization(slot.module, slot.name, fusion)


def graft(block: nn.Module, donor: nn.Module, generator: torch.Generator) -> None:
    """Let a trainable block take another block's matrices and biases, each under its own name.

    Args:
        block: made trainable.
        donor: folded; its norms are not used.
        generator: of what begins at random.

    Raises:
        PerplabError: the two have other names or shapes.
    """
    donated = {slot.path: slot.weight for slot in _slots(donor)}
    slots = {slot.path: slot for slot in _slots(block)}
    for path in sorted(slots.keys() | donated.keys()):
        if path not in slots or path not in donated or slots[path].weight.shape != donated[path].shape:
            raise PerplabError(
                f"a removed block and its neighbour have no {path} of one shape",
                "use the method lora: it needs no donor",
            )
    for path, slot in slots.items():
        fusion = _fusion(slot)
        if isinstance(fusion, FusedMatrix):
            fusion.add_donor(donated[path], generator)
        elif slot.is_bias:
            fusion.add_donor(donated[path])


def fold(block: nn.Module) -> None:
    """Make a trainable block plain again: every fused weight becomes the parameter it replaces."""
    for slot in list(_slots(block)):
        if parametrize.is_parametrized(slot.module, slot.name):
            parametrize.remove_parametrizations(slot.module, slot.name, leave_parametrized=True)


class Trainables(NamedTuple):
    """What is trained in a block, by the learning rate it takes."""

    coefficients: list[nn.Parameter]
    """On donors."""
    others: list[nn.Parameter]
    """Low-rank updates, and shifts of norms and biases."""


def trainables(block: nn.Module) -> Trainables:
    """The parameters of a trainable block that are trained."""
    found = Trainables([], [])
    for slot in _slots(block):
        for name, parameter in _fusion(slot).named_parameters():
            (found.coefficients if name.startswith("coefficients") else found.others).append(parameter)
    return found


class _Slot(NamedTuple):
    """One parameter of a block, fused or plain."""

    path: str
    module: nn.Module
    name: str

    @property
    def weight(self) -> Tensor:
        """What the block computes with."""
        weight: Tensor = getattr(self.module, self.name)
        return weight

    @property
    def is_bias(self) -> bool:
        """Whether it belongs to a matrix; a norm's does not."""
        return self.name == "bias" and cast(Tensor, self.module.weight).ndim > 1


def _fusion(slot: _Slot) -> FusedMatrix | FusedVector:
    fusion: FusedMatrix | FusedVector = cast(Any, slot.module).parametrizations[slot.name][0]
    return fusion


def _slots(block: nn.Module) -> Iterator[_Slot]:
    for path, module in list(block.named_modules()):
        if "parametrizations" in path.split("."):
            continue
        fused = list(module.parametrizations) if parametrize.is_parametrized(module) else []
        names = [*fused, *(name for name, _ in module.named_parameters(recurse=False))]
        yield from (_Slot(f"{path}.{name}", module, name) for name in sorted(names))
