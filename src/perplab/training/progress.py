"""What a person watching a training run sees: a bar with loss, tokens per second and time left, and the held-out cost.

It goes to standard error, so that a command's output stays its own. Where that is no terminal, only the held-out lines
are printed.
"""

from collections import deque
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from perplab.training.heldout import OVERALL

RECENT_STEPS = 20


class TrainingProgress:
    """A progress bar over the steps of a run.

    Args:
        total_steps: of the whole run.
        tokens_per_step: to tell the speed by.
        first_step: steps already taken.
        shown: whether to show anything.
    """

    def __init__(self, total_steps: int, tokens_per_step: int, first_step: int, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  {task.fields[left]} left"),
            console=self._console,
            disable=not shown or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=first_step, loss="-", speed="-", left="-")
        self._total, self._step, self._tokens = total_steps, first_step, tokens_per_step
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)

    def advance(self, loss: float, seconds: float) -> None:
        """One more step."""
        self._step += 1
        self._recent.append(seconds)
        mean = sum(self._recent) / len(self._recent)
        left = timedelta(seconds=round(mean * (self._total - self._step)))
        self._bar.update(
            self._task, completed=self._step, loss=f"{loss:.3f}", speed=f"{self._tokens / mean:,.0f}", left=left
        )

    def evaluated(self, step: int, bits_per_byte: dict[str, float], old: dict[str, float]) -> None:
        """Held-out cost by domain after a step, and that of old text if there is any."""
        domains = "  ".join(f"{name} {bits:.3f}" for name, bits in bits_per_byte.items() if name != OVERALL)
        self._console.print(
            f"step {step}/{self._total}: held-out bits per byte {bits_per_byte[OVERALL]:.4f}  ({domains})"
            + (f", old text {old[OVERALL]:.4f}" if old else ""),
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
