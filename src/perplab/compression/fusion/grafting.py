"""Removing blocks one by one while their neighbours absorb them (FuseGPT), and the same without either half.

- One loop serves all: rank, remove, let a group of neighbours take the removed weights, train the group, again. Without
  donors it is removal with low-rank recovery, without training it is removal alone.
- Until the end a removed block only leaves the list of those alive: blocks keep their number, their masks, and their
  weights, which donors point at.
- A block that has absorbed others and is removed gives its fused weights.
- A donor goes to blocks of its own kind; a neighbour of another kind (sliding beside full attention) trains its update.
- After each round everything that was trained is written down, so that a killed run continues at the round.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.criteria import CRITERIA
from perplab.compression.fusion.distillation import distil, lesson_of, loss_of
from perplab.compression.fusion.fusion_layer import fold, graft, make_trainable
from perplab.compression.fusion.reduction import Figures, Watch, batches_of
from perplab.compression.fusion.removal import block_kind, remove_blocks, removed_count
from perplab.compression.fusion.rounds import Round, read_changes, read_rounds, write_rounds
from perplab.models.blocks import BlockRunner


@dataclass(frozen=True)
class Group:
    """A block that leaves and the neighbours that make up for it, by number.

    Attributes:
        before: blocks ahead of the group.
        members: the group, with the block.
        after: blocks behind it.
    """

    before: Sequence[int]
    members: Sequence[int]
    after: Sequence[int]


def group_around(block: int, alive: Sequence[int], neighbours: int) -> Group:
    """The group of a block: about as many neighbours before it as after it, moved inside the model at its ends.

    Args:
        block: that leaves.
        alive: blocks that are left, in their order.
        neighbours: in the group beside the block, at most.
    """
    size = min(neighbours + 1, len(alive))
    start = min(max(alive.index(block) - size // 2, 0), len(alive) - size)
    return Group(alive[:start], alive[start : start + size], alive[start + size :])


def remove_one_by_one(
    model: PreTrainedModel,
    windows: Tensor,
    config: FuseConfig,
    watch: Watch,
    checkpoint: Path | None = None,
    *,
    donors: bool,
) -> tuple[PreTrainedModel, Figures]:
    """Remove blocks in rounds; see the module's decisions.

    Args:
        model: changed in place.
        windows: (windows, length) of calibration tokens.
        config: how many, which, and how their neighbours recover.
        watch: told of each step.
        checkpoint: folder for the state after each round; None keeps none.
        donors: whether neighbours take the removed weights.

    Raises:
        PerplabError: too few blocks would stay, or a donor does not fit its neighbours.
    """
    fusion = _Fusion(model, config, donors)
    count = removed_count(len(fusion.alive), config.rate)
    rounds = fusion.resume(checkpoint) if checkpoint else []
    while len(rounds) < count:
        told = partial(watch, f"removing block {len(rounds) + 1} of {count}")
        rounds.append(fusion.round(rounds, windows, told))
        if checkpoint:
            write_rounds(checkpoint, model, rounds)
    for index in fusion.alive:
        fold(fusion.runner.blocks[index])
    remove_blocks(model, [done.block for done in rounds])
    return model, {
        f"round {number}/{name}": value
        for number, done in enumerate(rounds, start=1)
        for name, value in done.figures().items()
    }


class _Fusion:
    """A model on its way to fewer blocks."""

    def __init__(self, model: PreTrainedModel, config: FuseConfig, donors: bool) -> None:
        model.requires_grad_(False)
        self.runner = BlockRunner(model)
        self.alive = list(range(len(self.runner)))
        self._config, self._donors = config, donors
        self._kinds = [block_kind(model.config, index) for index in self.alive]
        self._rank = config.rank or max(1, min(128, model.config.hidden_size // 8))

    def _removable(self) -> list[int]:
        """Blocks that may still go."""
        ends = {0, len(self.runner) - 1} if self._config.protect_ends else set()
        return [index for index in self.alive if index not in ends]

    def resume(self, checkpoint: Path) -> list[Round]:
        """Repeat the rounds of a checkpoint without their training, and take its weights."""
        rounds = read_rounds(checkpoint)
        for number, done in enumerate(rounds):
            self._remove(done.block, self._generator(number))
        if rounds:
            read_changes(checkpoint, self.runner.model, rounds)
        return rounds

    def round(self, earlier: Sequence[Round], windows: Tensor, watch: Callable[[int, int], None]) -> Round:
        """Remove the block of the lowest score, and train its neighbours where there is training."""
        started = time.perf_counter()
        watch(0, 1)
        generator = self._generator(len(earlier))
        scores = self._scores(windows) if self._config.rescore or not earlier else earlier[0].scores
        block = min(self._removable(), key=lambda index: scores[str(index)])
        losses: tuple[float, float] | tuple[None, None] = (None, None)
        if self._config.epochs:
            losses = self._remove_and_train(block, windows, generator, watch)
        else:
            self._remove(block, generator)
        return Round(block, scores, time.perf_counter() - started, *losses)

    def _scores(self, windows: Tensor) -> dict[str, float]:
        config = self._config
        batches = batches_of(windows[: config.scored_windows], config.batch)
        with parametrize.cached():
            scores = CRITERIA[config.criterion](self.runner, batches, self.alive)
        return {str(index): score for index, score in scores.items()}

    def _remove_and_train(
        self, block: int, windows: Tensor, generator: torch.Generator, watch: Callable[[int, int], None]
    ) -> tuple[float, float]:
        """Let a group give without a block what it gave with it; the loss before and after."""
        config, group = self._config, group_around(block, self.alive, self._config.group)
        lesson = lesson_of(self.runner, batches_of(windows, config.batch), group.before, group.members)
        self._remove(block, generator)
        loss = loss_of(config.loss, self.runner, group.after)
        staying = [index for index in group.members if index != block]
        return distil(self.runner, staying, lesson, loss, config, generator, watch)

    def _remove(self, block: int, generator: torch.Generator) -> None:
        """Take a block off the list of those alive, and make its group ready to make up for it."""
        group, leaving = group_around(block, self.alive, self._config.group), self.runner.blocks[block]
        fold(leaving)
        self.alive.remove(block)
        if not self._config.epochs:
            return
        for index in group.members:
            if index != block:
                make_trainable(self.runner.blocks[index], self._rank, generator)
                if self._donors and self._kinds[index] == self._kinds[block]:
                    graft(self.runner.blocks[index], leaving, generator)

    def _generator(self, number: int) -> torch.Generator:
        """Of the randomness of a round, which a resumed run has to meet again."""
        return torch.Generator().manual_seed(self._config.seed * 100_003 + number)
