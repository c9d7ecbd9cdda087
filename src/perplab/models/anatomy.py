"""Where the parts of a causal language model are, family by family.

- What differs from family to family is data, in `perplab.models.families`. One resolver turns it into the parts of a
  model, and every path the table gives must be there.
- A part is named by its role, not by its family's word for it: `block.projections["down"]` is the MLP's last matrix
  product in all of them.
- A weight is seen as a matrix of (out, in) features whatever its storage: `Projection.matrix` is a view, so writing to
  it writes to the model.
- Fused projections say which rows of that matrix are whose, instead of naming a layout for every reader to decode.
- A block's residual stream is described by roles of norms, because "pre" and "post" do not tell OPT-350m from OLMo 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from perplab.errors import PerplabError
from perplab.models.families import Family, Residual, family_of
from perplab.models.mixers.token_mixer import TokenMixer


@dataclass(frozen=True, eq=False)
class Part:
    """A module and its full path in the model."""

    path: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Projection:
    """One matrix product, or one stack of them with a matrix an expert.

    Args:
        path: of the module; of the parameter where a module holds the weights of all experts under its own names.
        module: what holds the weight.
        weight_name: the attribute of `module` that is the weight.
        rows: for a fused projection, which rows of `matrix` belong to which role: `query`, `key`, `value`, or `gate`,
            `up`. Empty for all others.
    """

    path: str
    module: nn.Module
    weight_name: str = "weight"
    rows: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it: (out, in), for `Conv1D` (in, out), for experts (expert, out, in)."""
        parameter: nn.Parameter = getattr(self.module, self.weight_name)
        return parameter

    @property
    def matrix(self) -> torch.Tensor:
        """A view of the weight as (out, in), or (expert, out, in)."""
        return self.weight.T if isinstance(self.module, Conv1D) else self.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, of shape (out,); None where there is none."""
        return getattr(self.module, "bias", None)


@dataclass(frozen=True, eq=False)
class BlockAnatomy:
    """One decoder block.

    Args:
        path: full path of the block.
        module: the block.
        attention: the module that computes attention, with its output projection. It returns what is added to the
            residual stream (before an `attention_output` norm), in `bloom` the stream with that already added.
        mlp: the same for the MLP; None for `opt`, whose blocks hold the two projections themselves.
        norms: role to norm, in the order of their use. `attention_input` and `mlp_input` feed a branch (the same norm
            under both roles where the branches share it), `attention_output` and `mlp_output` act on what a branch adds
            to the residual stream, `after_attention` and `after_mlp` act on the stream itself after the addition. Norms
            of queries and keys belong to the attention and are not listed.
        projections: role to projection: `query`, `key`, `value` or the fused `qkv`; `attention_output`; `up`, `gate`
            where the MLP is gated, or the fused `gate_up`; `down`; `router` where there are experts. A recurrent mixer
            of ours may have others, and need not have all.
    """

    path: str
    module: nn.Module
    attention: Part
    mlp: Part | None
    norms: Mapping[str, Part]
    projections: Mapping[str, Projection]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A causal language model, taken apart.

    Args:
        family: transformers' `model_type`.
        residual: `sequential` where the MLP reads what attention wrote, `parallel` where both read the block's input.
        blocks: first to last.
        token_embedding: vocabulary to vectors.
        position_embedding: learned absolute positions.
        embedding_projection: between token embedding and residual stream, where their widths differ.
        embedding_norm: norm of the embedded input.
        final_norm: after the last block; None for post-norm `opt`.
        output_projection: between final norm and head, where the widths of stream and token embedding differ.
        head: hidden states to logits; its bias, if any, is `head.bias`.
        tied: whether head and token embedding are one parameter.
        logit_scale: factor on the head's output.
        logit_soft_cap: c in c * tanh(logits / c), applied last; None where logits are not capped.
        norm_offset: a norm multiplies by this plus its weight.
    """

    family: str
    residual: Residual
    blocks: tuple[BlockAnatomy, ...]
    token_embedding: Part
    position_embedding: Part | None
    embedding_projection: Part | None
    embedding_norm: Part | None
    final_norm: Part | None
    output_projection: Part | None
    head: Projection
    tied: bool
    logit_scale: float
    logit_soft_cap: float | None
    norm_offset: float

    def last_hidden_state(self, residual_stream: torch.Tensor) -> torch.Tensor:
        """What the model calls its last hidden state, from the residual stream after any block.

        Args:
            residual_stream: (..., hidden size), as a block returns it.

        Returns:
            (..., width of the head's input): final norm and output projection applied.
        """
        for part in (self.final_norm, self.output_projection):
            if part is not None:
                residual_stream = part.module(residual_stream)
        return residual_stream

    def logits(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """The model's logits.

        Args:
            last_hidden_state: (..., width of the head's input): `hidden_states[-1]` of a forward pass with
                `output_hidden_states=True`, which every family takes after final norm and output projection.

        Returns:
            (..., vocabulary size).
        """
        logits: torch.Tensor = self.head.module(last_hidden_state)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_soft_cap is not None:
            logits = torch.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
        return logits


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the parts of `model`.

    Raises:
        PerplabError: the family is unknown, or the model lacks a part that its family has.
    """
    config, family = model.config, family_of(model.config)
    find = _Finder(model, family)
    token_embedding, head = find.part(family.token_embedding), find.projection(family.head)
    return Anatomy(
        family=config.model_type,
        residual=family.residual,
        blocks=tuple(find.block(f"{family.blocks}.{index}") for index in range(config.num_hidden_layers)),
        token_embedding=token_embedding,
        position_embedding=find.optional_part(family.position_embedding),
        embedding_projection=find.optional_part(family.embedding_projection),
        embedding_norm=find.optional_part(family.embedding_norm),
        final_norm=find.optional_part(family.final_norm),
        output_projection=find.optional_part(family.output_projection),
        head=head,
        tied=head.weight is token_embedding.module.weight,
        logit_scale=getattr(config, family.logit_scale) if family.logit_scale else 1.0,
        logit_soft_cap=getattr(config, family.logit_soft_cap) if family.logit_soft_cap else None,
        norm_offset=family.norm_offset,
    )


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every `nn.Linear` and `Conv1D` inside the blocks, by full path, in the order of the model; the head is not one.

    Experts that transformers stores as one parameter of shape (expert, out, in) are not modules and not listed:
    `anatomy` has them as projections.

    Raises:
        PerplabError: the family is unknown.
    """
    blocks = f"{family_of(model.config).blocks}."
    return {
        path: module
        for path, module in model.named_modules()
        if path.startswith(blocks) and isinstance(module, (nn.Linear, Conv1D))
    }


@dataclass(frozen=True)
class _Finder:
    """Turns the paths of a family into the parts of one model of it."""

    model: PreTrainedModel
    family: Family

    def part(self, path: str) -> Part:
        found = self._attribute(path)
        if not isinstance(found, nn.Module):
            raise self._missing(path)
        return Part(path, found)

    def optional_part(self, path: str | None) -> Part | None:
        """The part at `path`; None where the family has none or the model's own attribute is None."""
        return None if path is None or self._attribute(path) is None else self.part(path)

    def projection(self, path: str, role: str | None = None) -> Projection:
        found = self._attribute(path)
        if isinstance(found, nn.Parameter):  # all experts of a block in one
            holder, _, name = path.rpartition(".")
            stack = Projection(path, self.part(holder).module, name)
            return replace(stack, rows=_gate_up_rows(stack)) if role == "gate_up" else stack
        single = Projection(path, self.part(path).module)
        return replace(single, rows=self._qkv_rows(single)) if role == "qkv" else single

    def block(self, path: str) -> BlockAnatomy:
        family = self.family
        attention = self.part(f"{path}.{family.attention}")
        projections = dict(family.projections)
        if isinstance(attention.module, TokenMixer):  # one block's mixer may have other projections than the next one's
            own = {role: f"{family.attention}.{name}" for role, name in attention.module.projections.items()}
            rest = {role: name for role, name in projections.items() if not name.startswith(family.attention)}
            projections = own | rest
        return BlockAnatomy(
            path=path,
            module=self.part(path).module,
            attention=attention,
            mlp=self.part(f"{path}.{family.mlp}") if family.mlp else None,
            norms={role: self.part(f"{path}.{name}") for role, name in family.norms.items()},
            projections={role: self.projection(f"{path}.{name}", role) for role, name in projections.items()},
        )

    def _attribute(self, path: str) -> Any:
        found: Any = self.model
        for name in path.split("."):
            if not hasattr(found, name):
                raise self._missing(path)
            found = getattr(found, name)
        return found

    def _missing(self, path: str) -> PerplabError:
        return PerplabError(
            f"this {self.model.config.model_type} model has no {path}", "use a model of the family's standard layout"
        )

    def _qkv_rows(self, qkv: Projection) -> dict[str, torch.Tensor]:
        config, matrix = self.model.config, qkv.matrix
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        groups = (len(matrix) // width - heads) // 2  # key-value heads
        rows = torch.arange(len(matrix))
        if self.family.qkv_order == "concatenated":
            parts = torch.split(rows, [heads * width, groups * width, groups * width])
        else:
            parts = torch.split(rows.view(groups, -1, width), [heads // groups, 1, 1], dim=1)
        query, key, value = (part.flatten() for part in parts)
        return {"query": query, "key": key, "value": value}


def _gate_up_rows(gate_up: Projection) -> dict[str, torch.Tensor]:
    gate, up = torch.arange(gate_up.weight.shape[-2]).chunk(2)
    return {"gate": gate, "up": up}
