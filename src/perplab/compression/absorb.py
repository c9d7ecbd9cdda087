"""Scaling a layer's inputs while the model computes the same: what came before divides, the layer multiplies.

- Layers that read one tensor are scaled together. What can divide that tensor is the norm that made it, the value
  rows in front of the attention's output projection, or the up rows in front of the down projection.
- Where nothing can divide (a GELU between up and down, value heads that are shared by query heads, a stream that is
  read without a norm, experts, a recurrent mixer) the layers keep their inputs as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from perplab.compression.layers import Layer, block_layers
from perplab.models.anatomy import Anatomy, BlockAnatomy, Part, Projection

_READS_ATTENTION_INPUT = ("query", "key", "value", "qkv")
_READS_MLP_INPUT = ("gate", "up", "gate_up")


@dataclass(frozen=True, eq=False)
class ScalableInput:
    """Layers that read one tensor, and how to divide that tensor.

    Args:
        layers: all that read it.
        divide: divides feature i of the tensor by entry i of a vector, by changing weights of the model.
    """

    layers: tuple[Layer, ...]
    divide: Callable[[torch.Tensor], None]


def scalable_inputs(block: BlockAnatomy, anatomy: Anatomy, config: PreTrainedConfig) -> list[ScalableInput]:
    """The inputs of a block that can be scaled."""
    layers = {layer.role: layer for layer in block_layers(block) if layer.expert is None}
    kept = {"mlp_input"} if "router" in block.projections else set()
    kept |= {"attention_input"} if _is_recurrent(block) else set()
    by_norm: dict[int, tuple[Part, list[Layer]]] = {}
    for role, readers in (("attention_input", _READS_ATTENTION_INPUT), ("mlp_input", _READS_MLP_INPUT)):
        norm = block.norms.get(role)
        if norm is not None and role not in kept:
            _, reading = by_norm.setdefault(id(norm.module), (norm, []))
            reading += [layers[reader] for reader in readers if reader in layers]
    found = [
        ScalableInput(tuple(reading), _dividing_norm(norm, anatomy.norm_offset)) for norm, reading in by_norm.values()
    ]
    for reader, source in (("attention_output", _value(block)), ("down", _up(block, config))):
        if source is not None and reader in layers and len(source.rows) == layers[reader].matrix.shape[1]:
            found.append(ScalableInput((layers[reader],), source.divide))
    return found


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a projection whose outputs are the features of a tensor, one to one."""

    projection: Projection
    rows: torch.Tensor

    def divide(self, scale: torch.Tensor) -> None:
        with torch.no_grad():
            matrix, bias = self.projection.matrix, self.projection.bias
            matrix[self.rows] = (matrix[self.rows] / scale.unsqueeze(1)).to(matrix.dtype)
            if bias is not None:
                bias[self.rows] = (bias[self.rows] / scale).to(bias.dtype)


def _dividing_norm(norm: Part, offset: float) -> Callable[[torch.Tensor], None]:
    def divide(scale: torch.Tensor) -> None:
        with torch.no_grad():
            weight, bias = norm.module.get_parameter("weight"), getattr(norm.module, "bias", None)
            weight.copy_((weight + offset) / scale - offset)
            if bias is not None:
                bias.copy_(bias / scale)

    return divide


def _value(block: BlockAnatomy) -> _Rows | None:
    return None if _is_recurrent(block) else _rows(block.projections, "value", "qkv")


def _is_recurrent(block: BlockAnatomy) -> bool:
    """Whether a block's token mixer reads its norm and its values by more ways than the projections of attention."""
    return getattr(block.attention.module, "cache_layer", "attention") == "state"


def _up(block: BlockAnatomy, config: PreTrainedConfig) -> _Rows | None:
    """The up rows, where the down projection reads them as a factor or through a ReLU."""
    gated = "gate" in block.projections or "gate_up" in block.projections
    activation = getattr(config, "activation_function", None) or getattr(config, "hidden_act", None)
    return _rows(block.projections, "up", "gate_up") if gated or activation == "relu" else None


def _rows(projections: Mapping[str, Projection], role: str, fused: str) -> _Rows | None:
    if role in projections:
        projection = projections[role]
        return _Rows(projection, torch.arange(projection.matrix.shape[0]))
    together = projections.get(fused)
    if together is None or together.matrix.ndim != 2 or role not in together.rows:
        return None
    return _Rows(together, together.rows[role])
