"""Arithmetic on the weights of whole blocks, for methods that merge blocks into one another."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from perplab.compression.fusion.removal import block_kind
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner

Weights = Mapping[str, Tensor]
"""Every parameter of a block, by its name in the block."""


def weights_of(block: nn.Module) -> dict[str, Tensor]:
    """A block's parameters; writing to them writes to the block."""
    return {name: parameter.detach() for name, parameter in block.named_parameters()}


@torch.no_grad()
def write_weights(block: nn.Module, weights: Weights) -> None:
    """Give a block other values."""
    for name, parameter in block.named_parameters():
        parameter.copy_(weights[name])


def runner_of_alike_blocks(model: PreTrainedModel) -> BlockRunner:
    """The model's blocks, any of which can be merged with any other.

    Raises:
        PerplabError: blocks have different parts.
    """
    runner = BlockRunner(model)
    shapes = [{name: weight.shape for name, weight in weights_of(block).items()} for block in runner.blocks]
    for index, found in enumerate(shapes):
        if found != shapes[0] or block_kind(model.config, index) != block_kind(model.config, 0):
            raise PerplabError(
                f"block {index} of this model is of another kind than block 0, and weights of two kinds do not add up",
                "use a method that removes blocks: fuse, lora, shortgpt or sleb",
            )
    return runner
