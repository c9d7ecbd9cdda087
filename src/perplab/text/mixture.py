"""Batches drawn from several groups of blocks by weights that may change at any time.

- The next group is decided by credit, not by chance: at each draw every group earns its weight, and the group with the
  most credit is drawn and pays 1. With k groups, the draws of a group never exceed the sum of its weights over all
  draws by more than 1 - 1/k, and never fall short of it by more than 1/2 + 1/3 + ... + 1/k (the bound of the greedy
  player in the cup game). For two groups both are 1/2.
- Within a group each epoch is a permutation of its blocks that depends on the seed, the group and the epoch alone, so
  the state to resume from is a few numbers.
- A group whose weight becomes 0 is not drawn again; what it was owed or owes is shared among the others by weight.
- Equal credit is settled by the groups' names, so the order in which they were given does not matter.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.text.packing import Block, PackedBlocks


class Batch(NamedTuple):
    """Rows for a model, each array of shape (batch, block), and the group each row came from."""

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    groups: list[str]


@dataclass
class _Progress:
    """How far the draws from one group have come."""

    blocks: int
    weight: float
    credit: float = 0.0
    epoch: int = 0
    drawn: int = 0  # in this epoch


class MixtureSampler:
    """An endless sequence of batches.

    Args:
        groups: the blocks to draw from, by name; all of one block size.
        weights: share of the draws for each group, in any unit; a group not named gets none. None weighs each group by
            its tokens.
        seed: decides the order within the groups; not negative.

    Raises:
        PerplabError: there is no group, block sizes differ, or the weights name an unknown group, are negative, not
            finite or all zero.
    """

    def __init__(self, groups: Mapping[str, PackedBlocks], weights: Mapping[str, float] | None, seed: int) -> None:
        if not groups:
            raise PerplabError("no group to draw from", "give at least one")
        if len({blocks.block_size for blocks in groups.values()}) > 1:
            raise PerplabError("the groups differ in block size", "pack them all with one block size")
        if seed < 0:
            raise PerplabError(f"seed {seed} is negative", "give 0 or more")
        self._groups = {name: groups[name] for name in sorted(groups)}
        self._seed = seed
        self._progress = {name: _Progress(len(blocks), weight=0.0) for name, blocks in self._groups.items()}
        self._order: dict[str, npt.NDArray[np.int64]] = {}
        self.set_weights({name: b.num_tokens for name, b in groups.items()} if weights is None else weights)

    @property
    def weights(self) -> dict[str, float]:
        """Share of the draws for each group, summing to 1."""
        return {name: progress.weight for name, progress in self._progress.items()}

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the shares from the next draw on; credit earned so far stays.

        Raises:
            PerplabError: a group is unknown, or a weight is negative or not finite, or all are zero.
        """
        unknown = sorted(set(weights) - set(self._groups))
        if unknown:
            raise PerplabError(f"unknown group {unknown[0]!r}", f"choose from {', '.join(self._groups)}")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise PerplabError(
                    f"weight {weight} of group {name!r} is not a share", "give a finite number, 0 or more"
                )
        total = math.fsum(weights.values())
        if not total > 0:
            raise PerplabError("all weights are zero", "give at least one group a positive weight")
        for name, progress in self._progress.items():
            progress.weight = weights.get(name, 0.0) / total
        forgiven = math.fsum(progress.credit for progress in self._progress.values() if progress.weight == 0)
        for progress in self._progress.values():
            progress.credit = progress.credit + progress.weight * forgiven if progress.weight > 0 else 0.0

    def next_batch(self, batch_size: int) -> Batch:
        """Draw `batch_size` blocks."""
        names = [self._next_group() for _ in range(batch_size)]
        rows = [self._next_block(name) for name in names]
        input_ids, labels, position_ids = (np.stack(column) for column in zip(*rows, strict=True))
        return Batch(input_ids, labels, position_ids, names)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the sequence depends on beside the blocks themselves; can be written as JSON."""
        return {"seed": self._seed, "groups": {name: asdict(progress) for name, progress in self._progress.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the sampler that gave `state` stood; its seed and weights are taken over.

        Raises:
            PerplabError: the state is of other groups or other numbers of blocks.
        """
        progress = {name: _Progress(**values) for name, values in state["groups"].items()}
        theirs = {name: group.blocks for name, group in progress.items()}
        ours = {name: len(blocks) for name, blocks in self._groups.items()}
        if theirs != ours:
            raise PerplabError(
                f"the saved state is of other data (blocks a group: {theirs} there, {ours} here)",
                "resume with the corpus, tokenizer and block size of the first run",
            )
        self._seed = state["seed"]
        self._progress = {name: progress[name] for name in self._groups}
        self._order = {}

    def _next_group(self) -> str:
        for progress in self._progress.values():
            progress.credit += progress.weight
        name = max(self._progress, key=lambda name: self._progress[name].credit)
        self._progress[name].credit -= 1
        return name

    def _next_block(self, name: str) -> Block:
        progress = self._progress[name]
        if progress.drawn == progress.blocks:
            progress.epoch += 1
            progress.drawn = 0
            self._order.pop(name, None)  # absent after a resume at the end of an epoch
        if name not in self._order:
            self._order[name] = self._permutation(name, progress)
        index = int(self._order[name][progress.drawn])
        progress.drawn += 1
        return self._groups[name].block(index)

    def _permutation(self, name: str, progress: _Progress) -> npt.NDArray[np.int64]:
        group = int.from_bytes(blake2b(name.encode("utf-8"), digest_size=8).digest(), "big")
        return np.random.default_rng((self._seed, group, progress.epoch)).permutation(progress.blocks)
