"""`docs/claims.md`: every measured claim beside the paper's figure."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from perplab.artifacts import atomic_file
from perplab.claims.rows import summary
from perplab.errors import PerplabError

COLUMNS = ("claim", "paper", "here", "95 % interval", "baseline", "verdict")

_INTRODUCTION = """# Claims

What papers claim, measured here, beside their own figures. Written by `perplab claims report` from the results of
`perplab claims run`.

- **holds**: over seeds, the 95 % t-interval of the effect excludes "no effect" in the claimed direction, and the mean
  meets the paper's threshold where it states one. Where the claim is that a figure comes out, it does, within the
  stated tolerance.
- **holds in direction**: the mean goes the claimed way, and the seeds or the threshold do not allow more.
- **does not show at this scale**: it does not go the claimed way.

"Here" is the effect, which is what is compared: a figure itself, its difference from the baseline's figure, or its
ratio to it. The paper's figure is stated for the same effect. Where nothing depends on a seed, the figures are exact
and there is no interval: "deterministic".
"""


def write_page(path: str | os.PathLike[str]) -> int:
    """Write the page from the kept results; returns the number of claims on it.

    Raises:
        PerplabError: nothing was measured yet, or the file cannot be written.
    """
    rows = summary()
    if not rows:
        raise PerplabError("no claim was measured yet", "run perplab claims run NAME first")
    with atomic_file(Path(path)) as temporary:
        temporary.write_text(page(rows), encoding="utf-8")
    return len(rows)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page in Markdown, a section a paper."""
    sections = (_section(list(group)) for _, group in groupby(rows, key=lambda row: row["paper"]))
    return "\n".join([_INTRODUCTION, *sections])


def _section(rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join([*_heading(rows), *_table(rows), ""])


def circumstances(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where a paper is to be found and how its claims were measured, in a line."""
    row = rows[0]
    exact = all(one["deterministic"] for one in rows if one["verdict"] != "not measured")
    repeated = "no randomness, so one run is exact" if exact else f"{row['seeds']} seeds"
    stale = "" if row["current"] else " The code has changed since."
    return f"{row['reference']}. Scale {row['scale']}, {repeated}; {row['machine']}, {row['date'][:10]}.{stale}"


def _heading(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    row = rows[0]
    yield f"## {row['title']}"
    yield ""
    yield circumstances(rows)
    if row["note"]:
        yield row["note"]
    yield ""
    yield f"`perplab claims run {row['paper']} --scale {row['scale']}`"
    yield ""


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield _line(COLUMNS)
    yield "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|"
    yield from (_line(cells(row)) for row in rows)


def _line(texts: Iterable[str]) -> str:
    escaped = (text.replace("|", r"\|") for text in texts)
    return f"| {' | '.join(escaped)} |"


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row's text under each of `COLUMNS`."""
    unit = "" if row["effect"] == "ratio" else row["unit"]
    return (
        row["statement"],
        _figure(row["paper_value"], unit),
        _figure(row["ours"], unit),
        _interval(row),
        _figure(row["baseline"], row["unit"]),
        row["verdict"],
    )


def _interval(row: Mapping[str, Any]) -> str:
    if row["deterministic"]:
        return "deterministic"
    if row["interval"] is None:
        return "" if row["ours"] is None else "one seed"
    low, high = row["interval"]
    return f"{low:.4g} to {high:.4g}"


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.5g} {unit}".rstrip()
