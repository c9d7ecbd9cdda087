"""SliceGPT with one rotation for the whole model: a narrower checkpoint of the same layout (arXiv 2401.15024).

- SliceGPT turns the residual stream into the principal axes of its states and drops the last ones. It takes axes of
  each block's own, which needs a matrix on every residual connection and fits no plain checkpoint. One basis for all
  blocks needs none, and loses more.
- A norm's scale moves into the matrices that read it, so that a rotation passes through the norm. A narrower RMS is
  smaller for the same vector, and the norm's scale makes up for it: without any dropped axis the model is unchanged.
- This holds for Llama's layout: RMS norms in front of each branch, no mean taken off, heads of a width of their own.
- Tied embeddings come apart, because the head has taken the final norm's scale.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.reduction import Figures, Watch, batches_of
from perplab.errors import PerplabError
from perplab.models.anatomy import Anatomy, BlockAnatomy, Projection, anatomy
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.stock import to_stock

SLICEABLE = ("llama", "mistral", "qwen2", "qwen3", "perplab_decoder")
_NORM_OF = {
    **dict.fromkeys(("query", "key", "value"), "attention_input"),
    **dict.fromkeys(("gate", "up"), "mlp_input"),
}
"""The norm that a matrix reads the stream through; the other matrices write to the stream."""


@torch.no_grad()
def slicegpt(
    model: PreTrainedModel, windows: Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, Figures]:
    """Rotate the residual stream into its principal axes, and keep the first.

    Args:
        model: not changed.
        windows: (windows, length) of calibration tokens.
        config: the share of the width that goes.
        watch: told of batches read.
        checkpoint: not used; there is nothing long to resume.

    Raises:
        PerplabError: the family has another layout, or the rate leaves too little width for the heads.
    """
    own = isinstance(model, DecoderForCausalLM)
    if model.config.model_type not in SLICEABLE or (own and to_stock(model) is None):
        raise PerplabError(
            f"a {model.config.model_type} model has norms that a rotation does not pass, or is not made narrower here",
            f"use one of {', '.join(SLICEABLE)}, or a method that removes blocks",
        )
    width = _kept_width(model, config.rate)
    energies, axes = _principal_axes(model, batches_of(windows[: config.scored_windows], config.batch), watch)
    narrow = _narrower(model, width)
    _rotate_into(narrow, model, axes[:, :width])
    kept = float(energies[:width].sum() / energies.sum())
    return narrow, {"width before": model.config.hidden_size, "width": width, "energy kept": kept}


def _kept_width(model: PreTrainedModel, rate: float) -> int:
    """A share of the width, less what makes it uneven for the heads or for the hardware."""
    width, step = model.config.hidden_size, math.lcm(8, model.config.num_attention_heads)
    kept = width - step * math.ceil(round(width * rate / step, 9))
    if kept < step:
        raise PerplabError(f"rate {rate} of a width of {width} leaves less than {step}", "give a lower rate")
    return int(kept)


def _principal_axes(model: PreTrainedModel, batches: Sequence[Tensor], watch: Watch) -> tuple[Tensor, Tensor]:
    """Energies and axes (columns) of the states that norms read, each state of length one, the strongest first."""
    width = model.config.hidden_size
    moments = torch.zeros(width, width, dtype=torch.float64)

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        states = F.normalize(arguments[0].flatten(0, -2).float(), dim=-1)
        moments.add_((states.T @ states).cpu())

    handles = [norm.register_forward_pre_hook(add) for norm in _norms(anatomy(model))]
    try:
        for number, batch in enumerate(batches, start=1):
            model(input_ids=batch, use_cache=False)
            watch("reading states", number, len(batches))
    finally:
        for handle in handles:
            handle.remove()
    energies, axes = torch.linalg.eigh(moments)
    return energies.flip(0), axes.flip(1)


def _narrower(model: PreTrainedModel, width: int) -> PreTrainedModel:
    """A model of the same layout with another width, its weights still to be written."""
    config = copy.deepcopy(model.config)
    config.head_dim = anatomy(model).blocks[0].projections["query"].matrix.shape[0] // config.num_attention_heads
    config.hidden_size = width
    config.tie_word_embeddings = False
    narrow = type(model)(config).to(model.device, model.dtype).eval()
    narrow.generation_config = copy.deepcopy(model.generation_config)
    return narrow


def _rotate_into(narrow: PreTrainedModel, model: PreTrainedModel, axes: Tensor) -> None:
    """Write the weights of `model` into `narrow`, its residual stream in the coordinates of `axes` (width, kept)."""
    old, new = anatomy(model), anatomy(narrow)
    axes = axes.float().to(model.device)
    _weight(new.token_embedding.module).copy_(_weight(old.token_embedding.module).float() @ axes)
    new.head.matrix.copy_(_reader(old.head, _final_norm(old), axes))
    for source, target in zip(old.blocks, new.blocks, strict=True):
        _rotate_block_into(target, source, axes)
    for norm in _norms(new):
        _weight(norm).fill_(math.sqrt(axes.shape[0] / axes.shape[1]))


def _rotate_block_into(target: BlockAnatomy, source: BlockAnatomy, axes: Tensor) -> None:
    sizes = {name: weight.shape for name, weight in target.module.state_dict().items()}
    unturned = {  # norms of queries and keys, biases of matrices that read
        name: weight for name, weight in source.module.state_dict().items() if weight.shape == sizes[name]
    }
    target.module.load_state_dict(unturned, strict=False)
    for role, projection in target.projections.items():
        own, norm = source.projections[role], _NORM_OF.get(role)
        if norm is not None:
            projection.matrix.copy_(_reader(own, source.norms[norm].module, axes))
            continue
        projection.matrix.copy_(axes.T @ own.matrix.float())
        if projection.bias is not None and own.bias is not None:
            projection.bias.copy_(axes.T @ own.bias.float())


def _reader(projection: Projection, norm: nn.Module, axes: Tensor) -> Tensor:
    """A matrix that reads the stream through a norm: it takes the norm's scale."""
    return (projection.matrix.float() * _weight(norm).float()) @ axes


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight").detach()


def _final_norm(parts: Anatomy) -> nn.Module:
    assert parts.final_norm is not None  # every family here has one
    return parts.final_norm.module


def _norms(parts: Anatomy) -> list[nn.Module]:
    """Every norm of the residual stream."""
    return [*(part.module for block in parts.blocks for part in block.norms.values()), _final_norm(parts)]
