"""What a reduction is told: the library's argument, the command line's flags and the lineage's record in one."""

import math
from dataclasses import dataclass
from typing import Literal

from perplab.errors import PerplabError

Method = Literal["fuse", "lora", "shortgpt", "sleb", "laco", "mka", "slicegpt"]
Criterion = Literal["macro_influence", "block_influence", "sleb_loss"]
LossName = Literal["mse", "batch_kl", "token_kl"]


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """Settings of `perplab fuse`.

    Raises:
        PerplabError: a value that cannot be meant, named with what to give instead.
    """

    method: Method = "fuse"
    """fuse: neighbours absorb a removed block's weights. lora: the same with low-rank updates alone. shortgpt, sleb:
    removal alone. laco, mka: blocks merged into one another. slicegpt: a narrower model of the same depth."""
    rate: float = 0.25
    """Share of the blocks to remove, rounded up to whole blocks; for slicegpt, of the width."""
    criterion: Criterion = "macro_influence"
    """How fuse and lora choose the block to remove: its effect on the last hidden state, on its own input, or on the
    loss."""
    rescore: bool = True
    """Rank the blocks again after each removal; without it the first ranking decides them all (fuse, lora)."""
    protect_ends: bool = True
    """Never remove the first and the last block (fuse, lora, shortgpt, sleb)."""
    group: int = 7
    """Neighbours that make up for a removed block (fuse, lora)."""
    rank: int | None = None
    """Rank of updates and of coefficients; by default an eighth of the width, at most 128 (fuse, lora)."""
    loss: LossName = "mse"
    """What neighbours are trained to reproduce: the group's output (mse), its order among the windows of a batch
    (batch_kl, the paper's), or the model's predictions (token_kl, which costs passes through the rest of the model)."""
    epochs: int = 10
    """Passes over the windows after each removal; 0 removes and trains nothing (fuse, lora)."""
    coefficient_learning_rate: float = 1e-2
    """Peak learning rate of the coefficients on removed weights (fuse)."""
    learning_rate: float = 3e-3
    """Peak learning rate of everything else that is trained: low-rank updates, norms, biases (fuse, lora)."""
    windows: int = 128
    """Windows of calibration text that are trained on."""
    scored_windows: int = 32
    """Of those, how many rank the blocks."""
    length: int | None = None
    """Tokens a window; by default 512, or as many as the model has positions."""
    batch: int = 8
    """Windows that go through the model at once."""
    seed: int = 0
    """Decides the windows, the initial updates and the order of training."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("group", "windows", "scored_windows", "batch"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if not 0 <= self.rate < 1:
            raise PerplabError(f"rate is {self.rate}", "give a share from 0 to below 1")
        if self.rank is not None and self.rank < 1:
            raise PerplabError(f"rank is {self.rank}", "give 1 or more")
        if self.length is not None and self.length < 2:
            raise PerplabError(f"length is {self.length}", "give 2 or more")
        if self.epochs < 0:
            raise PerplabError(f"epochs is {self.epochs}", "give 0 or more")
        for name in ("coefficient_learning_rate", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 0 or more")
        if self.loss == "batch_kl" and min(self.batch, self.windows) < 2:
            raise PerplabError(
                "the loss batch_kl compares the windows of a batch, and there is one",
                "give a batch of 2 or more, or the loss mse",
            )
