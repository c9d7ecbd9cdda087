"""Which block a model misses least: scores of blocks, the lowest first to go.

- All criteria read the same batches of unpadded tokens and score every block that is still there.
- `alive` is the blocks that are left, by their index in the runner: removal is a shorter list, and no weight moves.
- Cosines are taken in float32, whatever the model's dtype.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perplab.compression.fusion.config import Criterion
from perplab.models.blocks import BlockRunner

Scores = dict[int, float]
BlockScores = Callable[[BlockRunner, Sequence[Tensor], Sequence[int]], Scores]


@torch.no_grad()
def block_influence(runner: BlockRunner, batches: Sequence[Tensor], alive: Sequence[int]) -> Scores:
    """How far a block turns its own input: 1 - cos(input, output), over all positions (ShortGPT).

    Args:
        runner: of the model.
        batches: token ids, each (batch, length).
        alive: blocks that are left, in their order.

    Returns:
        Block to score, from 0 to 2.
    """
    totals = dict.fromkeys(alive, 0.0)
    for batch in batches:
        stream = runner.enter(batch)
        for index in alive:
            output = runner.run(index, stream)
            totals[index] += _turned(stream, output) * len(batch)
            stream = output
    return _means(totals, batches)


@torch.no_grad()
def macro_influence(runner: BlockRunner, batches: Sequence[Tensor], alive: Sequence[int]) -> Scores:
    """How far leaving a block out turns what the last block gives, before the final norm (FuseGPT).

    Costs about half as many passes through a block as the square of their number.

    Args:
        runner: of the model.
        batches: token ids, each (batch, length).
        alive: blocks that are left, in their order.

    Returns:
        Block to score, from 0 to 2.
    """
    totals = dict.fromkeys(alive, 0.0)
    for batch in batches:
        inputs = _block_inputs(runner, batch, alive)
        for place, index in enumerate(alive):
            without = runner.run_all(inputs[place], alive[place + 1 :])
            totals[index] += _turned(inputs[-1], without) * len(batch)
    return _means(totals, batches)


@torch.no_grad()
def sleb_loss(runner: BlockRunner, batches: Sequence[Tensor], alive: Sequence[int]) -> Scores:
    """What a token costs the model without a block (SLEB).

    Args:
        runner: of the model.
        batches: token ids, each (batch, length).
        alive: blocks that are left, in their order.

    Returns:
        Block to score, in nats a token.
    """
    totals = dict.fromkeys(alive, 0.0)
    for batch in batches:
        inputs = _block_inputs(runner, batch, alive)
        for place, index in enumerate(alive):
            without = runner.run_all(inputs[place], alive[place + 1 :])
            totals[index] += _cost(runner, without, batch) * len(batch)
    return _means(totals, batches)


CRITERIA: dict[Criterion, BlockScores] = {
    "macro_influence": macro_influence,
    "block_influence": block_influence,
    "sleb_loss": sleb_loss,
}


def _block_inputs(runner: BlockRunner, batch: Tensor, alive: Sequence[int]) -> list[Tensor]:
    """The input of every block, and what the last one gives."""
    inputs = [runner.enter(batch)]
    for index in alive:
        inputs.append(runner.run(index, inputs[-1]))
    return inputs


def _turned(first: Tensor, second: Tensor) -> float:
    return float(1 - F.cosine_similarity(first.float(), second.float(), dim=-1).mean())


def _cost(runner: BlockRunner, stream: Tensor, batch: Tensor) -> float:
    """Nats a token, one row at a time: logits of a whole batch would be the largest tensor of all."""
    parts = runner.anatomy
    rows = [
        F.cross_entropy(parts.logits(parts.last_hidden_state(row[None]))[0, :-1].float(), ids[1:])
        for row, ids in zip(stream, batch, strict=True)
    ]
    return float(torch.stack(rows).mean())


def _means(totals: Scores, batches: Sequence[Tensor]) -> Scores:
    rows = sum(len(batch) for batch in batches)
    return {index: total / rows for index, total in totals.items()}
