"""The section of claims: what papers say, beside what was measured here.

A verdict is said in words with a sign before it; its colour only repeats them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from perplab.claims.page import COLUMNS, cells
from perplab.errors import PerplabError
from perplab.report.parts import MINUS, Column, Table

_KINDS = {
    "holds": ("holds", "\N{CHECK MARK}"),
    "holds in direction": ("holds", "\N{NORTH EAST ARROW}"),
    "not measured": ("open", "\N{WHITE CIRCLE}"),
}
_FAILS = ("fails", "\N{MULTIPLICATION X}")


@dataclass(frozen=True)
class PaperView:
    """A paper's claims.

    Attributes:
        title: of the paper.
        circumstances: where the paper is, and how its claims were measured.
        table: a row for each claim.
    """

    title: str
    circumstances: str
    table: Table


@dataclass(frozen=True)
class Claims:
    """The section."""

    note: str
    papers: Sequence[PaperView]


def claims_section(rows: Sequence[Mapping[str, Any]]) -> Claims | None:
    """The section for claims; None where there are none.

    Args:
        rows: as `perplab.claims.summary` gives them, the claims of one paper next to each other.

    Raises:
        PerplabError: a row lacks a field.
    """
    if not rows:
        return None
    try:
        papers = [_paper(list(group)) for _, group in groupby(rows, key=lambda row: row["paper"])]
    except KeyError as error:
        raise PerplabError(f"a claim has no {error}", "give rows of perplab.claims.summary()") from None
    held = sum(_kind(row["verdict"])[0] == "holds" for row in rows)
    return Claims(f"Claims that hold here, in full or in direction: {held} of {len(rows)}.", papers)


def _paper(rows: Sequence[Mapping[str, Any]]) -> PaperView:
    first = rows[0]
    repeated = "no randomness" if first["deterministic"] else f"{first['seeds']} seeds"
    stale = "" if first["current"] else " The code has changed since."
    return PaperView(
        title=first["title"],
        circumstances=f"{first['reference']}. Scale {first['scale']}, {repeated}; {first['machine']}.{stale}",
        table=Table(
            "Claims of the paper and figures measured here",
            [Column(name, numeric=name not in (COLUMNS[0], COLUMNS[-1])) for name in COLUMNS],
            [_cells(row) for row in rows],
        ),
    )


def _cells(row: Mapping[str, Any]) -> list[str | Markup]:
    *shown, verdict = cells(dict(row))
    kind, sign = _kind(verdict)
    words = Markup('<span class="verdict {}"><span aria-hidden="true">{}</span> {}</span>').format(kind, sign, verdict)
    statement, *numbers = shown
    return [statement, *(text.replace("-", MINUS) for text in numbers), words]


def _kind(verdict: str) -> tuple[str, str]:
    """Class in the style sheet, and sign."""
    return _KINDS.get(verdict, _FAILS)
