"""What a person watching a ladder sees: a bar over the training operations of all cells, and a line for each that ends.

How far a cell is stands in the last line of its trainer's diary.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from perplab.laws.ladder.measuring import CellWork

_LAST_BYTES = 4096


class LadderProgress:
    """A progress bar over a ladder, on standard error.

    Args:
        compute: floating-point operations of all cells.
        shown: whether to show anything; where there is no terminal, the lines alone are.
    """

    def __init__(self, compute: float, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("of {task.total:.2g} FLOPs,"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            speed_estimate_period=600,
            disable=not shown or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("ladder", total=compute)

    def show(self, done: float, at_work: Sequence[CellWork]) -> None:
        """How far everything is.

        Args:
            done: operations of the cells that are finished.
            at_work: the others.
        """
        under_way = sum(work.planned.compute * share_done(work) for work in at_work)
        self._bar.update(
            self._task,
            completed=done + under_way,
            description=" ".join(work.planned.cell.name for work in at_work) or "ladder",
        )

    def finished(self, row: Mapping[str, Any]) -> None:
        """A cell is done."""
        self._console.print(
            f"{row['cell']}: {row['params']:,} parameters, {row['tokens']:,} tokens, {row['loss']:.4f} nats a token",
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def share_done(work: CellWork) -> float:
    """Steps a cell has taken, as a share of all."""
    steps = _last_step(work.diary)
    return min(1.0, steps / work.planned.config.total_steps)


def _last_step(diary: Path) -> int:
    """The last step that was written down whole."""
    try:
        with diary.open("rb") as file:
            file.seek(max(0, diary.stat().st_size - _LAST_BYTES))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, IndexError, ValueError, KeyError):
        return 0
