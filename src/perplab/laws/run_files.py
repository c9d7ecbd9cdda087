"""Run logs on disk: CSV with a header, JSON lines, or a folder of published results.

A row needs `params`, `loss`, and `tokens` or `multiplier` (tokens per parameter). The other fields of `Run` are used
where they are given, and further columns are passed over, so that a log may hold more than a law needs.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from perplab.errors import PerplabError
from perplab.laws.runs import Run, Runs
from perplab.laws.testbed import read_testbed

_COUNTS = {"params", "tokens", "seed", "params_no_embed", "corpus_tokens", "scheduled_tokens"}
_NUMBERS = {"loss", "error"}
_NEEDED = "give params, loss, and tokens or multiplier in every row"


def read_runs(path: str | os.PathLike[str]) -> Runs:
    """Read a run log: .csv, .jsonl, or a folder in the layout of `read_testbed`.

    Raises:
        PerplabError: the file is missing, of another kind or empty; a line holds no run; or `Runs` refuses them.
    """
    file = Path(path)
    if file.is_dir():
        return read_testbed(file)
    readers = {".csv": _csv_records, ".jsonl": _json_records}
    if file.suffix.lower() not in readers:
        raise PerplabError(f"{file} is not a run log", "give a .csv or .jsonl file, or a folder of published results")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records = readers[file.suffix.lower()](lines, file)
            runs = [_run(record, f"{file} line {number}") for number, record in records]
    except UnicodeDecodeError as error:
        raise PerplabError(f"{file} is not UTF-8 ({error})", "convert it") from None
    except OSError as error:
        raise PerplabError(f"cannot read {file} ({error.strerror or error})", "name a run log") from None
    if not runs:
        raise PerplabError(f"{file} holds no runs", _NEEDED)
    try:
        return Runs(runs)
    except PerplabError as error:
        raise PerplabError(f"{file}: {error.problem}", error.mend) from None


def _csv_records(lines: Iterable[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for record in reader:
            given = {name: value for name, value in record.items() if name and value not in (None, "")}
            yield reader.line_num, given
    except csv.Error as error:
        raise PerplabError(f"{file} line {reader.line_num + 1} is not CSV ({error})", "correct the line") from None


def _json_records(lines: Iterable[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise PerplabError(f"{file} line {number} is not JSON ({error})", "correct the line") from None
        if not isinstance(record, dict):
            raise PerplabError(f"{file} line {number} is {line.strip()[:40]!r}", "give one JSON object a line")
        yield number, {name: value for name, value in record.items() if value is not None}


def _run(record: dict[str, Any], where: str) -> Run:
    try:
        if "tokens" not in record and {"params", "multiplier"} <= record.keys():
            tokens = _number("params", record["params"]) * _number("multiplier", record["multiplier"])
            record = record | {"tokens": tokens}
        for name in ("params", "tokens", "loss"):
            if name not in record:
                raise PerplabError(f"no {name}", _NEEDED)
        known = {field.name for field in fields(Run)} & record.keys()
        return Run(**{name: _value(name, record[name]) for name in known})
    except PerplabError as error:
        raise PerplabError(f"{where}: {error.problem}", error.mend) from None


def _value(name: str, given: Any) -> Any:
    if name in _COUNTS:
        number = _number(name, given)
        return round(number) if math.isfinite(number) else number
    return _number(name, given) if name in _NUMBERS else str(given)


def _number(name: str, given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError):
        raise PerplabError(f"{name} is {given!r}", "give a number") from None
