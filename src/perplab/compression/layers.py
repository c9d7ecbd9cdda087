"""The matrices of a block that can be rounded, and what their inputs look like.

- A layer is a matrix of (out, in) features with a path: an `nn.Linear`, a `Conv1D`, or one expert of a stack that the
  block keeps in one parameter. Routers and the rates of a recurrent mixer are left alone: they are small, and all that
  a block computes hangs on them.
- Inputs are watched by hooks while the block runs. Layers that read the same tensor (queries, keys and values; gate and
  up) share one sum.
- Products are float32, because that is what a processor is fast at; their sum over batches is float64, because it has
  as many terms as there are batches.
- An expert sees the tokens that are routed to it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perplab.compression.solvers import InputMoments
from perplab.models.anatomy import BlockAnatomy, Projection

_LEFT_ALONE = ("router", "beta", "decay")


@dataclass(frozen=True, eq=False)
class Layer:
    """A matrix that can be rounded.

    Args:
        path: of the module; of the parameter and the expert's number where experts are a stack.
        role: of the projection, as in `perplab.models.anatomy`.
        projection: what holds it.
        expert: its number in the stack.
    """

    path: str
    role: str
    projection: Projection
    expert: int | None = None

    @property
    def matrix(self) -> torch.Tensor:
        """(out, in) view of the weight: writing to it writes to the model."""
        matrix = self.projection.matrix.detach()
        return matrix if self.expert is None else matrix[self.expert]


def block_layers(block: BlockAnatomy) -> list[Layer]:
    """The layers of a block, in the order in which they work."""
    layers: list[Layer] = []
    for role, projection in block.projections.items():
        if role in _LEFT_ALONE:
            continue
        if projection.matrix.ndim == 2:
            layers.append(Layer(projection.path, role, projection))
        else:
            stack = range(projection.matrix.shape[0])
            layers += [Layer(f"{projection.path}.{expert}", role, projection, expert) for expert in stack]
    return layers


class _Sum:
    """Moments of a layer's inputs, so far."""

    def __init__(self, width: int) -> None:
        self.second = torch.zeros(width, width, dtype=torch.float64)
        self.magnitude = torch.zeros(width, dtype=torch.float64)
        self.count = 0

    def add(self, inputs: torch.Tensor) -> None:
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.second += (rows.T @ rows).cpu()
        self.magnitude += rows.abs().sum(dim=0, dtype=torch.float64).cpu()
        self.count += len(rows)

    def moments(self) -> InputMoments:
        return InputMoments(self.second, self.magnitude / max(self.count, 1), self.count)


class InputWatch:
    """Sums over what layers read while they are watched.

    Args:
        layers: of one block.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._sums: dict[str, _Sum] = {}
        self._last: tuple[torch.Tensor, _Sum] | None = None

    def take(self, *layers: Layer) -> InputMoments:
        """What layers that read one tensor have read; it is forgotten here, because it can be larger than the layer."""
        found, *_ = [self._sums.pop(layer.path, None) for layer in layers]
        return (found or _Sum(layers[0].matrix.shape[1])).moments()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the context lasts."""
        handles = [self._hook(layer) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def _hook(self, layer: Layer) -> torch.utils.hooks.RemovableHandle:
        if layer.expert is None:
            return layer.projection.module.register_forward_pre_hook(
                lambda _, arguments: self._add(layer.path, arguments[0])
            )
        return layer.projection.module.register_forward_pre_hook(
            lambda experts, arguments: self._add(layer.path, _routed(layer, experts, *arguments))
        )

    def _add(self, path: str, inputs: torch.Tensor) -> None:
        if self._last is not None and self._last[0] is inputs:
            self._sums[path] = self._last[1]
            return
        total = self._sums.get(path)
        if total is None:
            total = self._sums[path] = _Sum(inputs.shape[-1])
        total.add(inputs)
        self._last = inputs, total


def _routed(layer: Layer, experts: Any, hidden_states: torch.Tensor, chosen: torch.Tensor, *_: Any) -> torch.Tensor:
    """What one expert's matrix reads of the tokens that are routed to it."""
    tokens = hidden_states[chosen.eq(layer.expert or 0).any(dim=-1)]
    if layer.role == "gate_up":
        return tokens
    gate, up = nn.functional.linear(tokens, experts.gate_up_proj[layer.expert]).chunk(2, dim=-1)
    return experts.act_fn(gate) * up
