"""What repairing with prompts is told: the library's argument, the command line's flags and the lineage's record."""

from dataclasses import dataclass
from typing import Literal, get_args

from perplab.errors import PerplabError

Method = Literal["dynamic", "single", "prefix", "ptuning", "lora"]
Slices = Literal["domain", "mixed"]

DEFAULT_LEARNING_RATES: dict[Method, float] = {
    "dynamic": 3e-2,
    "single": 3e-2,
    "prefix": 1e-1,
    "ptuning": 3e-3,
    "lora": 1e-2,
}


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Settings of `perplab prompt`.

    Raises:
        PerplabError: a value that cannot be meant, named with what to give instead.
    """

    method: Method = "dynamic"
    """What is trained: several prompts of which each text gets one, a single prompt, keys and values of every layer
    (prefix), a prompt written by a small network (ptuning), or low-rank changes merged into the attention's weights
    (lora)."""
    prompts: int = 3
    """Prompts to choose from (dynamic)."""
    length: tuple[int, ...] = (8,)
    """Vectors of a prompt; several lengths are given to the prompts in turn."""
    slices: Slices = "domain"
    """What the prompts of a pool are trained on: the corpus's domains in turn, the largest first, or each on everything
    with a seed of its own (dynamic)."""
    selector: str = "attention"
    """What chooses: attention, attention_calibrated, likelihood, random, or the name of a prompt (dynamic)."""
    layer: int = 0
    """Whose attention chooses, counted from 0."""
    context_tokens: int = 16
    """Tokens that are read before a text's prompt is chosen; until then the first prompt serves."""
    rank: int = 4
    """Rank of the changes (lora)."""
    steps: int = 300
    """Optimiser steps of each prompt, or of the adapter."""
    batch_rows: int = 16
    """Rows of text in a step."""
    row_tokens: int = 64
    """Tokens of a row, all from one document."""
    learning_rate: float | None = None
    """Largest learning rate, where training begins; by default 0.03, for prefix 0.1, lora 0.01 and ptuning 0.003."""
    seed: int = 0
    """Decides initial values, the order of the text, and what the random selector draws."""
    checkpoint_every: int = 50
    """Steps between checkpoints, where there is an output folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.method not in get_args(Method):
            raise PerplabError(f"unknown method {self.method!r}", f"choose one of {', '.join(get_args(Method))}")
        if self.slices not in get_args(Slices):
            raise PerplabError(f"unknown slices {self.slices!r}", f"choose one of {', '.join(get_args(Slices))}")
        for name in ("prompts", "context_tokens", "rank", "steps", "batch_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise PerplabError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if not self.length or min(self.length) < 1:
            raise PerplabError(f"length is {self.length}", "give 1 or more vectors")
        if self.row_tokens < 2:
            raise PerplabError(f"row_tokens is {self.row_tokens}", "give 2 or more: the first token predicts the next")
        if self.selector == "attention_calibrated" and self.context_tokens > self.row_tokens:
            raise PerplabError(
                f"context_tokens {self.context_tokens} is more than the {self.row_tokens} of a row",
                "give longer rows, which the selector is calibrated on",
            )
        if self.selector == "likelihood" and self.context_tokens < 2:
            raise PerplabError("a context of one token has no likelihood", "give context_tokens of 2 or more")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise PerplabError(f"learning_rate is {self.learning_rate}", "give a number above 0")
        if self.seed < 0:
            raise PerplabError(f"seed {self.seed} is negative", "give 0 or more")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate where training begins."""
        return self.learning_rate or DEFAULT_LEARNING_RATES[self.method]
