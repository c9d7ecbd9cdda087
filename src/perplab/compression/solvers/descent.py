"""One sweep of coordinate descent on the error of a layer's output (arXiv 2309.01885, algorithm 2).

Seen from one weight, with all others fixed, the error is a parabola; the weight moves to the rounded lowest point. A
sweep visits all columns once, all rows at the same time.

Decisions:
- The lowest point is `W_hat_j - G_j / S_jj`, `G = (W_hat - target) S`. A block's G is computed from the current weights
  when the block is reached, in one matrix product, and kept up inside the block by `round_in_turn`. So a sweep is one
  product of the weight's size with S, nothing is carried from sweep to sweep, and no float error piles up.
- What a sweep gains is the sum of what its moves gain on their parabolas, and costs no product.
- Inputs that are always 0 have no parabola: their weights are rounded where they stand.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from perplab.compression.solvers.feedback import BLOCK, RoundInto, round_in_turn
from perplab.errors import PerplabError

LAST_FREE = 25
"""Last sweep, counted from 0, that may go without rounding."""


def sweep(current: Tensor, target: Tensor, second: Tensor, round_into: RoundInto) -> tuple[float, bool]:
    """Move every column of `current` to its rounded lowest point, in turn.

    Args:
        current: (in, out), the weights on their way; changed in place.
        target: (in, out), the weights whose output is wanted.
        second: (in, in), second moment of the inputs.
        round_into: rounds one column, or copies it for a sweep without rounding.

    Returns:
        By how much `trace((current - target)^T second (current - target))` fell, and whether any weight moved.
    """
    error = current - target
    diagonal = second.diagonal()
    curvature = diagonal.masked_fill(diagonal == 0, 1.0).unsqueeze(1)
    rounded, changes = current.new_empty(2, min(BLOCK, len(current)), current.shape[1])
    gain, moved = 0.0, False
    for start in range(0, len(current), BLOCK):
        block = slice(start, start + BLOCK)
        before = current[block]
        rounded, changes = rounded[: len(before)], changes[: len(before)]
        coupling = second[block] / curvature[block]
        lowest = torch.addmm(before, coupling, error, alpha=-1)
        round_in_turn(lowest, rounded, changes, before, coupling[:, block], round_into, start)
        gains = lowest.mul_(2).sub_(rounded).sub_(before).mul_(changes).sum(dim=1)
        gain += torch.dot(gains, diagonal[block]).item()
        moved = moved or bool(changes.any())
        torch.sub(rounded, target[block], out=error[block])
        before.copy_(rounded)
    return gain, moved


def copy_into(destination: Tensor, values: Tensor, _: int) -> None:
    """A rounding that leaves every value as it is."""
    destination.copy_(values)


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    """How long to descend, and when to go without rounding.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    sweeps: int = 30
    """Visits of every column, at most."""
    free_every: int = 3
    """One sweep in this many goes without rounding, which leads out of points that no single move improves; 0: none."""
    act_order: bool = False
    """Visit inputs of large second moment first."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.sweeps < 1:
            raise PerplabError(f"sweeps is {self.sweeps}", "give 1 or more")
        if self.free_every < 0 or self.free_every == 1:
            raise PerplabError(f"free_every is {self.free_every}", "give 2 or more, or 0 for none")

    def is_free(self, number: int) -> bool:
        """Whether sweep `number`, from 0, goes without rounding: never the last one, so that the end is on the grid."""
        due = self.free_every > 0 and number % self.free_every == 1
        return due and number <= LAST_FREE and number < self.sweeps - 1
