"""Adapting the phases of queries and keys inside models of other libraries, where their attention makes them.

- A model keeps its modules and its code. Each attention gets a module `phase`, and what makes its queries and its keys
  (a projection, or the norm behind it) hands its output through it before rotary positions turn it.
- Heads are paired (i, i + rotary_dim / 2), as in these families. Families that pair neighbours, that have other
  positions, or that fuse projections in a way of their own are refused: turned by other pairs than the positions use,
  they would be another model than the paper's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.anatomy import anatomy
from perplab.models.mixers.complex import ComplexOptions, EulerPhase

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "olmo2", "phi", "gpt_neox")
"""Rotary families with half-split pairs, as transformers writes them."""


class ProjectedPhase(EulerPhase):
    """`EulerPhase` on what projections and their norms return, (batch, length, heads * head_dim) or with heads apart.

    Args:
        head_dim: components of a head.
        options: further arguments of `EulerPhase`.
    """

    def __init__(self, num_heads: int, head_dim: int, **options: Any) -> None:
        super().__init__(num_heads, head_dim, **options)
        self.head_dim = head_dim

    def turn_queries_of(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of what makes queries."""
        return self.turn_query(self._by_head(output)).transpose(1, 2).reshape(output.shape)

    def turn_keys_of(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of what makes keys."""
        return self.turn_key(self._by_head(output)).transpose(1, 2).reshape(output.shape)

    def turn_fused_of(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a projection that gives, head by head, query, key and value."""
        parts = output.reshape(*output.shape[:2], -1, 3, self.head_dim)
        query, key, value = parts.transpose(1, 3).unbind(1)
        turned = torch.stack((self.turn_query(query), self.turn_key(key), value), dim=1)
        return turned.transpose(1, 3).reshape(output.shape)

    def _by_head(self, output: Tensor) -> Tensor:
        """(batch, heads, length, head_dim)."""
        return output.reshape(*output.shape[:2], -1, self.head_dim).transpose(1, 2)


def attach_phases(model: PreTrainedModel, options: ComplexOptions) -> None:
    """Give every attention of a model a `phase`, in place.

    Args:
        model: of one of `FAMILIES`.
        options: of the phases; `attention_scale` is the model's own.

    Raises:
        PerplabError: the family is another, or this variant of it makes queries elsewhere.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise PerplabError(
            f"how a {config.model_type} model pairs and turns queries and keys is not known",
            f"use one of {', '.join(FAMILIES)}, or a decoder of this package",
        )
    if getattr(config, "qk_layernorm", False):
        raise PerplabError("a phi model with qk_layernorm normalises queries by head", "use one without")
    for block in anatomy(model).blocks:
        attention = block.attention.module
        phase = _phase_for(config, options)
        attention.phase = phase.to(block.projections["attention_output"].weight.device)
        if "qkv" in block.projections:
            block.projections["qkv"].module.register_forward_hook(phase.turn_fused_of)
            continue
        makers = [getattr(attention, norm, None) or getattr(attention, projection) for norm, projection in _MAKERS]
        makers[0].register_forward_hook(phase.turn_queries_of)
        makers[1].register_forward_hook(phase.turn_keys_of)


_MAKERS = (("q_norm", "q_proj"), ("k_norm", "k_proj"))


def _phase_for(config: PreTrainedConfig, options: ComplexOptions) -> ProjectedPhase:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ProjectedPhase(
        heads,
        head_dim,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        rotary_dim=int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)),
        options=options,
    )
