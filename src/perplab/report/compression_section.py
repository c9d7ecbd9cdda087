"""The section of compressed models: what was saved against what was lost.

Decisions:
- The first two plots have the price on one axis and the loss on the other; the dotted line goes through the models that
  no other beats in both. The other plots set perplexity beside a task, to see whether it could stand in for it.
- A method is a shape, a number of bits is written beside it.
- A figure that cannot be read (a task at chance, alignment of a model without knowledge) is a word in the table and no
  point in a plot.
"""

from collections.abc import Sequence

import numpy as np

from perplab.evaluation.quantization.measurements import Measurement
from perplab.evaluation.quantization.real_text import LOG_PERPLEXITY
from perplab.evaluation.quantization.table import Entry, GridTable, Row
from perplab.report import plots as draw
from perplab.report.axes import MARKS
from perplab.report.parts import Column, Figure, Section, Table, number, percentage

_MOST_TASKS = 12
"""Tasks that get a plot."""
_STARRED = 0.05


def compression_section(table: GridTable) -> Section:
    """Plots and tables of a model beside its compressed forms."""
    methods = list(dict.fromkeys(_method(row) for row in table.rows))
    shapes = list(MARKS)
    kinds = ", ".join(f"{shapes[place % len(shapes)]} {method}" for place, method in enumerate(methods))
    note = (
        f"{table.model} as it is, and {len(table.rows) - 1} compressed forms of it. Shapes are methods: {kinds}; the "
        "number beside a point is the bits. A star marks a difference from the reference with p below 0.05."
    )
    tasks = [one for one in table.measurements if one.name != LOG_PERPLEXITY and _is_read(table, one.name)]
    figures = [
        _figure("Bits against perplexity", table, methods, "bits per weight", LOG_PERPLEXITY),
        _figure("Bytes against perplexity", table, methods, "MB of checkpoint", LOG_PERPLEXITY),
        *(_figure(_heading(one), table, methods, LOG_PERPLEXITY, one.name) for one in tasks[:_MOST_TASKS]),
    ]
    title = f"{table.model}, compressed"
    tables = [_losses(table), _efficiency(table)]
    return Section("compression", title, "Compressed models", note, figures, tables)


def _figure(heading: str, table: GridTable, methods: Sequence[str], across: str, up: str) -> Figure:
    rows = [row for row in table.rows if row.entries[up].reading == "measured"]
    points = [
        draw.Point(
            x=_coordinate(row, across),
            y=_coordinate(row, up),
            label=row.cell.name.rpartition("-")[2] if "-" in row.cell.name else "",
            title=f"{row.cell.name}: {number(_coordinate(row, across), 2)} and {number(_coordinate(row, up), 3)}",
            mark=methods.index(_method(row)),
        )
        for row in rows
    ]
    is_price = up == LOG_PERPLEXITY
    front = _front([(point.x, point.y) for point in points]) if is_price else []
    return Figure(
        heading,
        "Left and low is better; nothing beats the models on the dotted line."
        if is_price
        else "If perplexity stands in for this figure, the points lie on a line.",
        draw.scatter(heading, points, _unit(table, across), _unit(table, up), front),
        Table(
            heading,
            [Column("model", numeric=False), Column(_unit(table, across)), Column(_unit(table, up))],
            [(row.cell.name, number(point.x, 2), number(point.y, 3)) for row, point in zip(rows, points, strict=True)],
        ),
        named=False,
    )


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is below and left of, from the left."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def _losses(table: GridTable) -> Table:
    columns = [Column("model", numeric=False), *(Column(one.name) for one in table.measurements)]
    rows = [(row.cell.name, *(_entry(row.entries[one.name], one) for one in table.measurements)) for row in table.rows]
    return Table("What was lost", columns, rows)


def _entry(entry: Entry, measurement: Measurement) -> str:
    if entry.reading != "measured":
        return entry.reading
    decimals = 1 if abs(measurement.value) >= 10 else 3
    star = "*" if entry.difference is not None and entry.difference.p_value < _STARRED else ""
    kept = "" if entry.retention is None or entry.difference is None else f" ({percentage(entry.retention, 0)})"
    return f"{number(entry.value, decimals)}{star}{kept}"


def _efficiency(table: GridTable) -> Table:
    sizes = ("bits per weight", "bits stored", "MB of checkpoint", "MB at work")
    names = (*sizes, "prompt tokens/s", "new tokens/s", "kernel")
    reference = table.rows[0].cell.speed
    return Table(
        "What was saved" if reference is None else f"What was saved; {reference.circumstances}",
        [Column("model", numeric=False), *(Column(name, numeric=name != "kernel") for name in names)],
        [(row.cell.name, *_saved(row)) for row in table.rows],
    )


def _saved(row: Row) -> tuple[str, ...]:
    bits, speed = row.cell.bits, row.cell.speed
    sizes = (number(bits.nominal, 2), number(bits.stored, 2), number(bits.checkpoint_bytes / 1e6, 2))
    if speed is None:
        return (*sizes, "", "", "", "")
    if bits.is_simulated:
        return (*sizes, "", "", "", "simulated in ordinary weights")
    memory = "" if speed.peak_bytes is None else number((bits.checkpoint_bytes + speed.peak_bytes) / 1e6, 1)
    speeds = number(speed.prompt_tokens_per_second, 0), number(speed.new_tokens_per_second, 0)
    return (*sizes, memory, *speeds, speed.kernel)


def _coordinate(row: Row, name: str) -> float:
    if name == "bits per weight":
        return row.cell.bits.nominal
    return row.cell.bits.checkpoint_bytes / 1e6 if name == "MB of checkpoint" else row.entries[name].value


def _unit(table: GridTable, name: str) -> str:
    units = [one.unit for one in table.measurements if one.name == name and one.unit]
    return f"{name}, {units[0]}" if units else name


def _heading(measurement: Measurement) -> str:
    return f"Perplexity against {measurement.name}"


def _is_read(table: GridTable, name: str) -> bool:
    """Whether a figure is readable for two models that differ in it."""
    values = [row.entries[name].value for row in table.rows if row.entries[name].reading == "measured"]
    return len(values) > 1 and bool(np.ptp(values) > 0)


def _method(row: Row) -> str:
    return row.cell.name.rpartition("-")[0] or row.cell.name
