"""From cells to runs: parameters counted from the model itself, tokens in whole steps, and the memory a run takes."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.laws.allocation import allocate
from perplab.laws.ladder.config import Cell, LadderConfig, Shape
from perplab.laws.law import warn
from perplab.training import TrainConfig
from perplab.training.config import RUN_TIME_ONLY
from perplab.training.new_model import new_model

_PROCESS_BYTES = 400 << 20
"""The interpreter with torch, before there is a model."""
_BYTES_PER_PARAMETER = 16
"""A float32 weight, its gradient and AdamW's two moments."""
_ACTIVATIONS = 40
"""Numbers that a layer keeps for its backward pass, in widths a token."""
_OF_THE_CELL = frozenset({"tokens", "horizon_tokens", "depth", "hidden_size", "num_hidden_layers", "seed"})


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A cell with what it comes to.

    Attributes:
        cell: the cell.
        config: settings of its training, which ends after a whole number of steps.
        params: of its model, embeddings included.
        memory: bytes it is expected to take.
    """

    cell: Cell
    config: TrainConfig
    params: int
    memory: int

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.config.tokens

    @property
    def compute(self) -> float:
        """Floating-point operations of its training."""
        return float(allocate(params=self.params, tokens=self.tokens).compute)


def plan_runs(config: LadderConfig, tokenizer: PreTrainedTokenizerBase, corpus_tokens: int) -> list[PlannedRun]:
    """The runs of a ladder, in the order of its cells. Runs of more than one epoch are a `LawWarning`.

    Args:
        config: of the ladder.
        tokenizer: of all runs.
        corpus_tokens: tokens of one epoch.

    Raises:
        PerplabError: a run has less than half a batch, or a shape makes no decoder.
    """
    counted: dict[Shape, int] = {}
    runs = []
    for cell in config.cells:
        settings = _settings(config.training, cell, tokens=config.training.batch_tokens)
        if cell.shape not in counted:
            counted[cell.shape] = new_model(settings, tokenizer).num_parameters()
        params = counted[cell.shape]
        steps = round(cell.multiplier * params / settings.batch_tokens)
        if steps < 1:
            raise PerplabError(
                f"{cell.name} has {cell.multiplier * params:.0f} tokens, less than half a batch of "
                f"{settings.batch_tokens}",
                "give it a larger multiplier, or smaller batches",
            )
        settings = replace(settings, tokens=steps * settings.batch_tokens)
        runs.append(PlannedRun(cell, settings, params, _memory(settings, cell.shape, params, len(tokenizer))))
    for tokens in sorted({run.tokens for run in runs if run.tokens > corpus_tokens}):
        warn(f"{tokens} tokens are over one epoch of {corpus_tokens}: repeated data are outside the law")
    return runs


def shared_settings(training: TrainConfig) -> dict[str, Any]:
    """What decides the result of all runs alike."""
    return {name: value for name, value in asdict(training).items() if name not in _OF_THE_CELL | RUN_TIME_ONLY}


def available_memory() -> int:
    """Bytes that new processes may take."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def choose_next(waiting: Sequence[PlannedRun], running: Sequence[PlannedRun], memory: int) -> PlannedRun | None:
    """The longest run that fits beside those at work; any run where none is at work.

    Args:
        waiting: not yet begun.
        running: at work.
        memory: bytes for all of them together.
    """
    left = memory - sum(run.memory for run in running)
    fitting = [run for run in waiting if run.memory <= left or not running]
    return max(fitting, key=lambda run: run.compute, default=None)


def _settings(training: TrainConfig, cell: Cell, tokens: int) -> TrainConfig:
    shape = cell.shape
    return replace(
        training,
        tokens=tokens,
        horizon_tokens=None,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        seed=cell.seed,
    )


def _memory(config: TrainConfig, shape: Shape, params: int, vocabulary: int) -> int:
    numbers_a_token = shape.layers * shape.width * _ACTIVATIONS + vocabulary
    return _PROCESS_BYTES + _BYTES_PER_PARAMETER * params + 4 * numbers_a_token * config.micro_batch_tokens
