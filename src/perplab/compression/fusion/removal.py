"""Taking blocks out of a model, so that what is left is a plain checkpoint of fewer blocks.

- A block's number is written in its modules (its place in the key-value cache) and in every config entry that lists
  one value a block. Both are found by form, not by family: attributes of a known name, lists of the right length.
- A family that computes with a block's number would change with it, and is refused.
"""

import math
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.families import family_of

_NUMBER_NAMES = ("layer_idx", "layer_index")
_OTHER_LISTS = ("architectures",)


def removed_count(blocks: int, rate: float) -> int:
    """How many blocks a rate takes out of a model.

    Raises:
        PerplabError: fewer than two would stay.
    """
    count = math.ceil(round(blocks * rate, 9))  # 0.3 of 10 is 3, whatever binary fractions make of it
    if count and blocks - count < 2:
        raise PerplabError(f"rate {rate} leaves {blocks - count} of {blocks} blocks", "give a rate that leaves 2")
    return count


def per_block_settings(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """The config's lists of one value a block, by name."""
    return {
        name: list(value)
        for name, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == config.num_hidden_layers
        and not name.startswith("_")
        and not name.endswith(("token_id", "token_ids"))
        and name not in _OTHER_LISTS
    }


def block_kind(config: PreTrainedConfig, index: int) -> tuple[Any, ...]:
    """What the config says about one block; blocks of one kind compute alike."""
    return tuple(values[index] for values in per_block_settings(config).values())


def remove_blocks(model: PreTrainedModel, indices: Collection[int]) -> None:
    """Take blocks out of `model`, in place.

    Args:
        model: of a known family.
        indices: of the blocks.

    Raises:
        PerplabError: no block would stay, there is no such block, or the family computes with block numbers.
    """
    config = model.config
    unknown = sorted(set(indices) - set(range(config.num_hidden_layers)))
    if unknown:
        raise PerplabError(f"there is no block {unknown[0]} of {config.num_hidden_layers}", "name a block from 0")
    kept = [index for index in range(config.num_hidden_layers) if index not in indices]
    if not kept:
        raise PerplabError("no block would stay", "remove fewer")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise PerplabError(
            "this model scales attention by the number of the block, which removal would change",
            "use a model without scale_attn_by_inverse_layer_idx",
        )
    settings = per_block_settings(config)
    holder, _, name = family_of(config).blocks.rpartition(".")
    blocks = getattr(model.get_submodule(holder), name)
    setattr(model.get_submodule(holder), name, nn.ModuleList(blocks[index] for index in kept))
    for place, index in enumerate(kept):
        _renumber(blocks[index], place)
    config.num_hidden_layers = len(kept)
    for setting, values in settings.items():
        setattr(config, setting, [values[index] for index in kept])


def _renumber(block: nn.Module, place: int) -> None:
    for module in block.modules():
        for name in _NUMBER_NAMES:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, place)
