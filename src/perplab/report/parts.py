"""What the page is made of, ready to print: every number is already a string in the reader's format."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from perplab.scoring.bootstrap import Interval

MINUS = "\N{MINUS SIGN}"
LABEL_LETTERS = 28
"""Longest name of a model or a domain in a table and on a switch."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading, with the unit.
        numeric: whether its cells line up on the right.
    """

    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names the row."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Markup]]


@dataclass(frozen=True)
class Figure:
    """A plot with its numbers.

    Attributes:
        heading: what it shows.
        note: how to read it.
        plot: the picture.
        table: the numbers behind it.
        named: whether it has one series for each model, so that it needs their names.
    """

    heading: str
    note: str
    plot: Markup
    table: Table
    named: bool = True


@dataclass(frozen=True)
class Section:
    """What a verb found: words, plots and tables.

    Attributes:
        name: of the place in the page, one word.
        title: of a page that holds this alone.
        heading: above it.
        note: what it is about and how to read it.
        figures: plots.
        tables: in the order of their weight.
    """

    name: str
    title: str
    heading: str
    note: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class CardFigure:
    """A headline number. `name` is empty where the card's label says all."""

    name: str
    value: str
    interval: str = ""


@dataclass(frozen=True)
class Card:
    """Headline numbers of one kind."""

    label: str
    figures: Sequence[CardFigure]
    note: str = ""


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with thousands apart and a real minus sign."""
    rounded = round(float(value), decimals) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if signed and rounded else ''},.{decimals}f}".replace("-", MINUS)


def percentage(share: float, decimals: int = 1) -> str:
    """A share as per cent."""
    return f"{number(100 * share, decimals)} %"


def between(interval: Interval | None, decimals: int, *, signed: bool = False) -> str:
    """An interval in words; empty where there is none."""
    if interval is None:
        return ""
    low, high = (number(end, decimals, signed=signed) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def with_interval(value: float, interval: Interval | None, decimals: int, *, signed: bool = False) -> str:
    """A number with its interval in brackets, where it has one."""
    shown = number(value, decimals, signed=signed)
    return f"{shown} ({between(interval, decimals, signed=signed)})" if interval else shown


def shortened(text: str, letters: int) -> str:
    """`text`, with its middle left out where it is longer than `letters`."""
    if len(text) <= letters:
        return text
    head = letters // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (letters - head - 1) :]}"
