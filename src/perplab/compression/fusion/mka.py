"""MKA: the last two blocks averaged, again and again (Liu et al., arXiv 2406.16330).

- The paper's merge. Its repository writes into a dictionary that is no part of the model, so that it only removes
  blocks.
- How alike two blocks are is how much the diffusion maps of their outputs tell about each other: mutual information
  over entropy, both of Gaussian variables. Maps are whitened, which changes no mutual information; it is then a sum
  over canonical correlations, and entropy is the same for all.
- The earlier block's weight is the sigmoid of the pair's share of the likeness of the earlier block to all others.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.merging import Weights, runner_of_alike_blocks, weights_of, write_weights
from perplab.compression.fusion.reduction import Figures, Watch, batches_of
from perplab.compression.fusion.removal import remove_blocks, removed_count
from perplab.models.blocks import BlockRunner

_POINTS = 256
"""Positions whose states are compared."""
_COORDINATES = 8
"""Of a diffusion map."""
_HIGHEST_CORRELATION = 0.9999
"""Equal maps would tell infinitely much about each other."""


def weighted_mean(first: Weights, second: Weights, share: float) -> dict[str, Tensor]:
    """The sum share * first + (1 - share) * second, in float32 and back."""
    return {
        name: (share * own.float() + (1 - share) * second[name].float()).to(own.dtype) for name, own in first.items()
    }


@torch.no_grad()
def mka(
    model: PreTrainedModel, windows: Tensor, config: FuseConfig, watch: Watch, checkpoint: Path | None = None
) -> tuple[PreTrainedModel, Figures]:
    """Average the last two blocks into the earlier, until enough have gone.

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
    count = removed_count(len(alive), config.rate)
    figures: Figures = {}
    for number in range(1, count + 1):
        share = _share(similarities(_outputs(runner, batches, alive)))
        first, second = (runner.blocks[index] for index in alive[-2:])
        write_weights(first, weighted_mean(weights_of(first), weights_of(second), share))
        alive.pop()
        figures[f"round {number}/share of the earlier block"] = share
        watch("merging blocks", number, count)
    remove_blocks(model, range(len(alive), len(runner)))
    return model, figures


def similarities(states: Sequence[Tensor]) -> Tensor:
    """How much each pair of blocks tells about each other.

    Args:
        states: a block each, (points, width), of the same points.

    Returns:
        (blocks, blocks), symmetric, from 0 up; the diagonal is finite by a cut.
    """
    maps = [_diffusion_map(points) for points in states]
    entropy = maps[0].shape[1] / 2 * math.log(2 * math.pi * math.e)
    return torch.tensor([[_mutual_information(first, second) / entropy for second in maps] for first in maps])


def _share(likeness: Tensor) -> float:
    """Of the block before the last, in a pair with the last."""
    others = likeness[-2].sum() - likeness[-2, -2]
    return float(torch.sigmoid(likeness[-2, -1] / others))


def _outputs(runner: BlockRunner, batches: Sequence[Tensor], alive: Sequence[int]) -> list[Tensor]:
    """What each block gives at the same positions, evenly spread."""
    kept: dict[int, list[Tensor]] = {index: [] for index in alive}
    for batch in batches:
        stream = runner.enter(batch)
        for index in alive:
            stream = runner.run(index, stream)
            kept[index].append(stream.flatten(0, 1))
    whole = {index: torch.cat(parts) for index, parts in kept.items()}
    positions = len(whole[alive[0]])
    chosen = torch.linspace(0, positions - 1, min(_POINTS, positions)).long()
    return [states[chosen.to(states.device)].double().cpu() for states in whole.values()]


def _diffusion_map(points: Tensor) -> Tensor:
    """Whitened coordinates (points, coordinates) of a walk between near points."""
    squared = torch.cdist(points, points).square()
    kernel = torch.exp(-squared / squared.median().clamp_min(torch.finfo(squared.dtype).tiny))
    degree = kernel.sum(dim=1).rsqrt()
    vectors = torch.linalg.eigh(degree[:, None] * kernel * degree).eigenvectors
    coordinates = (vectors * degree[:, None])[:, -1 - min(_COORDINATES, len(points) // 4) : -1]  # the last is constant
    whitened: Tensor = torch.linalg.qr(coordinates - coordinates.mean(dim=0)).Q
    return whitened


def _mutual_information(first: Tensor, second: Tensor) -> float:
    """Of Gaussian variables with whitened samples, in nats."""
    correlations = torch.linalg.svdvals(first.T @ second).clamp(max=_HIGHEST_CORRELATION)
    return float(-0.5 * torch.log1p(-correlations.square()).sum())
