"""LaCo: differences of following blocks added to one block (Yang et al., arXiv 2402.11187).

- The paper's formula. Its repository subtracts the weights it is changing, so that the sum is the last block's weights.
- The paper ends at a threshold of likeness to the dense model. Here a rate is the end: a walk that comes to the bottom
  too early is followed by another with a threshold lower by 0.05.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.merging import Weights, runner_of_alike_blocks, weights_of, write_weights
from perplab.compression.fusion.reduction import Figures, Watch, batches_of
from perplab.compression.fusion.removal import remove_blocks, removed_count
from perplab.models.blocks import BlockRunner

_MERGED = 3
"""Blocks merged into another at a time, at most."""
_INTERVAL = 2
"""Blocks between two merges of one walk."""
_THRESHOLDS = [(20 - step) / 20 for step in range(1, 42)]
"""The last is below every cosine."""


def with_differences(weights: Weights, following: Sequence[Weights]) -> dict[str, Tensor]:
    """W plus the sum over following blocks of (W_k - W), in float32 and back."""
    return {
        name: (own.float() + sum(other[name].float() - own.float() for other in following)).to(own.dtype)
        for name, own in weights.items()
    }


@torch.no_grad()
def laco(
    model: PreTrainedModel, windows: Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, Figures]:
    """Merge blocks into the one before them, from the top down, where the model stays like the dense one.

    Args:
        model: changed in place.
        windows: (windows, length) of calibration tokens.
        config: how many blocks go.
        watch: told of blocks removed.
        checkpoint: not used; there is nothing long to resume.

    Raises:
        PerplabError: too few blocks would stay, or blocks are of different kinds.
    """
    runner = runner_of_alike_blocks(model)
    alive = list(range(len(runner)))
    batches = batches_of(windows[: config.scored_windows], config.batch)
    dense = _last_hidden_states(runner, batches, alive)
    left = count = removed_count(len(alive), config.rate)
    figures: Figures = {}
    for threshold in _THRESHOLDS:
        place = len(alive) - 1 - min(_MERGED, left)
        while left and place >= 0:
            into, merged = alive[place], alive[place + 1 : place + 1 + min(_MERGED, left)]
            own = _merge(runner, into, merged)
            staying = [index for index in alive if index not in merged]
            likeness = _likeness(_last_hidden_states(runner, batches, staying), dense)
            if likeness >= threshold:
                alive, left = staying, left - len(merged)
                figures = {"likeness to the dense model": likeness, "threshold": threshold}
                watch("merging blocks", count - left, count)
                place = min(place - _INTERVAL, len(alive) - 2)
            else:
                write_weights(runner.blocks[into], own)
                place -= 1
    remove_blocks(model, set(range(len(runner))) - set(alive))
    return model, figures


def _merge(runner: BlockRunner, into: int, merged: Sequence[int]) -> dict[str, Tensor]:
    """Merge blocks into one; gives the weights it had."""
    own = {name: weight.clone() for name, weight in weights_of(runner.blocks[into]).items()}
    write_weights(runner.blocks[into], with_differences(own, [weights_of(runner.blocks[index]) for index in merged]))
    return own


def _last_hidden_states(runner: BlockRunner, batches: Sequence[Tensor], alive: Sequence[int]) -> list[Tensor]:
    return [runner.anatomy.last_hidden_state(runner.run_all(runner.enter(batch), alive)) for batch in batches]


def _likeness(found: Sequence[Tensor], dense: Sequence[Tensor]) -> float:
    """Mean cosine over all positions."""
    cosines = [
        F.cosine_similarity(first.float(), second.float(), dim=-1).flatten()
        for first, second in zip(found, dense, strict=True)
    ]
    return float(torch.cat(cosines).mean())
