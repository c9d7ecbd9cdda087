"""The section of flatness: what the loss is, how it bends, and how it rises around each model."""

from collections.abc import Iterator, Sequence

import numpy as np

from perplab.errors import PerplabError
from perplab.laws.flatness import Flatness, why_not_comparable
from perplab.report import plots as draw
from perplab.report.axes import MARKS
from perplab.report.curves import Curve, curves
from perplab.report.parts import LABEL_LETTERS, Column, Figure, Section, Table, number, shortened, with_interval
from perplab.scoring.bootstrap import Interval

_MOST_MODULES = 20
_RADIUS, _LOSS = "distance, lengths of the model's filters", "nats a token"


def flatness_section(found: Sequence[Flatness]) -> Section:
    """Plots and tables of one model, or of several on the same text.

    Args:
        found: at least one, at most as many as there are shapes of points.

    Raises:
        PerplabError: there are too many models.
    """
    if len(found) > len(MARKS):
        raise PerplabError(f"a page of {len(found)} models", f"give at most {len(MARKS)}")
    warnings = [reason for other in found[1:] if (reason := why_not_comparable(found[0], other))]
    note = (
        "The loss on a text, and how it bends around the model. Brackets are 95 % intervals: of the loss over "
        "documents, of trace and profile over what was drawn; those of eigenvalues are certain but for rounding. "
    )
    names = " and ".join(one.model for one in found)
    return Section(
        "flatness",
        f"Flatness of {names}",
        "Flatness",
        note + " ".join(f"{reason[0].upper()}{reason[1:]}." for reason in warnings),
        list(_figures(found)),
        [_summary(found), *(map(_modules, found) if len(found) > 1 else ())],
    )


def _figures(found: Sequence[Flatness]) -> Iterator[Figure]:
    profiled = [one for one in found if one.profile]
    if profiled:
        yield _profile(profiled)
    if len(found) == 1:
        yield _module_bars(found[0])


def _profile(found: Sequence[Flatness]) -> Figure:
    heading = "Loss along random directions"
    shown = []
    for one in found:
        radii, losses = np.array([point.radius for point in one.profile]), np.array([p.loss for p in one.profile])
        ends = [(p.interval.low, p.interval.high) if p.interval else (p.loss, p.loss) for p in one.profile]
        low, high = np.array(ends).T
        shown.append(Curve(one.model, radii, losses, (low, high)))
    rows = [
        (one.model, f"{point.radius:g}", with_interval(point.loss, point.interval if point.radius else None, 4))
        for one in found
        for point in one.profile
    ]
    return Figure(
        heading,
        "Mean over random directions, each followed both ways; a flat model's curve rises late.",
        curves(heading, shown, _RADIUS, _LOSS, logarithmic=False),
        Table(heading, [Column("model", numeric=False), Column("distance"), Column(_LOSS)], rows),
        named=False,
    )


def _module_bars(one: Flatness) -> Figure:
    heading = "Where the trace sits"
    parts = _largest(one)
    groups = [draw.BarGroup(_end_of(name), [draw.Bar(value)]) for name, value in parts]
    return Figure(
        heading,
        f"The part of each module's own parameters; the {_MOST_MODULES} largest.",
        draw.bars(heading, groups, "trace"),
        _modules(one),
        named=False,
    )


def _end_of(path: str) -> str:
    """The end of a module's path, as much of it as a bar's label holds: that is where modules differ."""
    while len(path) > draw.LABEL_LETTERS and "." in path:
        path = path.partition(".")[2]
    return path


def _summary(found: Sequence[Flatness]) -> Table:
    names = ("parameters", "tokens", _LOSS, "trace", "largest eigenvalues", "passes for the trace")
    return Table(
        f"Loss and curvature; trace by {found[0].method}",
        [Column("model", numeric=False), *map(Column, names)],
        [
            (
                shortened(one.model, LABEL_LETTERS),
                f"{one.parameters:,}",
                f"{one.tokens:,}",
                with_interval(one.loss, one.loss_interval, 4),
                _significant(one.trace.value, one.trace.interval),
                _eigenvalues(one),
                number(one.trace.passes, 1),
            )
            for one in found
        ],
    )


def _modules(one: Flatness) -> Table:
    parts = _largest(one)
    rest = one.trace.value - sum(value for _, value in parts)
    rows = [(name, _significant(value, None)) for name, value in parts]
    others = len(one.trace.by_module) - len(parts)
    if others:
        rows.append((f"{others} others", _significant(rest, None)))
    return Table(f"Trace by module, {one.model}", [Column("module", numeric=False), Column("trace")], rows)


def _largest(one: Flatness) -> list[tuple[str, float]]:
    return sorted(one.trace.by_module.items(), key=lambda part: -abs(part[1]))[:_MOST_MODULES]


def _eigenvalues(one: Flatness) -> str:
    if one.spectrum is None:
        return ""
    pairs = zip(one.spectrum.values, one.spectrum.intervals, strict=True)
    return ", ".join(_significant(value, interval) for value, interval in pairs)


def _significant(value: float, interval: Interval | None) -> str:
    """A number of any size to four digits, with its interval."""
    decimals = max(0, 3 - int(np.floor(np.log10(abs(value))))) if value else 0
    return with_interval(value, interval, decimals)
