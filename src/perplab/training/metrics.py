"""The run's diary: one JSON object a line in `metrics.jsonl`, and TensorBoard events where wanted.

A line is appended and flushed as it happens. A killed run may leave half a last line, and lines of steps that the
resumed run takes again: `MetricsLog` drops both, by an atomic rewrite, before it appends.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perplab.artifacts import atomic_file
from perplab.errors import PerplabError


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole records of a metrics file; half a last line is left out.

    Raises:
        PerplabError: a line in the middle is not a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise PerplabError(f"{path} line {number} is not a metrics record", "delete that line and run again")
        records.append(record)
    return records


class MetricsLog:
    """Append records to `metrics.jsonl`.

    Args:
        folder: where the file lies; None records nothing, for processes that do not write.
        resume_step: records of later steps are dropped first.
        tensorboard: also write TensorBoard events beside it.

    Raises:
        PerplabError: the file is corrupt, or TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, *, resume_step: int, tensorboard: bool) -> None:
        self._file, self._events = None, None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record["step"] <= resume_step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        self._events = _event_writer(folder, resume_step) if tensorboard else None
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, **values: Any) -> None:
        """Record numbers, or a dict of numbers by domain, for a step; what is nested deeper stays out of TensorBoard.

        Raises:
            PerplabError: the disk is full.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise PerplabError(
                f"cannot write {self._file.name} ({error.strerror})", "free space; the same call continues the run"
            ) from error
        if self._events is not None:
            for name, value in values.items():
                for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if not isinstance(number, dict):
                        self._events.add_scalar(f"{name}/{key}" if key else name, number, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # a line the disk refused, already told of when it was written
                self._file.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, resume_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PerplabError("TensorBoard is not installed", "pip install 'perplab[tensorboard]'") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)
