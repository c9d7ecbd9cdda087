"""Plots as inline SVG, drawn here: the page takes no plotting library and no picture from elsewhere.

- Geometry only. Colours, weights and fonts are classes of the page's style sheet, so both themes and print restyle a
  plot without redrawing it; no `style` attribute is written, because the page's content policy refuses them.
- The first series is filled or solid, the second hatched or dashed: a plot reads in grey.
- A plot is a picture with a title for screen readers; its numbers stand in a table beside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from perplab.report.axes import (
    BOTTOM,
    CLASSES,
    HEIGHT,
    LEFT,
    MARKS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Values,
    drawn,
    frame,
    path,
    px,
    rounded_out,
    tick_text,
    vertical,
    x_tick,
)
from perplab.report.parts import shortened
from perplab.scoring.bootstrap import Interval

_GAP = 12
_THINNEST, _THICKEST = 11.0, 20.0
_LABEL_WIDTH = 108
LABEL_LETTERS = 18


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a plot.

    Attributes:
        y: (points,); NaN where there is none.
        band: lower and upper borders of an interval, each (points,); NaN where a point has none.
    """

    y: Values
    band: tuple[Values, Values] | None = None


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        value: its length.
        interval: what the value may be.
        mark: a second value to compare the bar with, drawn as a tick across it.
    """

    value: float
    interval: Interval | None = None
    mark: float | None = None


@dataclass(frozen=True)
class BarGroup:
    """Bars of one label, one for each model."""

    label: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Point:
    """One thing with two figures.

    Attributes:
        x: the one.
        y: the other.
        label: short, written beside it.
        title: what it is, in full.
        mark: index of its shape in `MARKS`; things of one kind share a shape.
    """

    x: float
    y: float
    label: str
    title: str
    mark: int = 0


def steps(
    title: str,
    series: Sequence[Series],
    labels: Sequence[str],
    x_label: str,
    y_label: str,
    reference: Values | None = None,
) -> Markup:
    """Points at equal distances, joined, with their intervals as whiskers.

    Args:
        title: for screen readers.
        series: at most two, of `len(labels)` points or fewer.
        labels: of the points, from the left.
        x_label: under the plot, with its unit.
        y_label: above the vertical axis, with its unit.
        reference: (points,) what to compare the series with, drawn behind them.
    """
    return drawn(title, HEIGHT, _steps(series, labels, x_label, y_label, reference))


def histogram(title: str, series: Sequence[Series], width: float, x_label: str, y_label: str) -> Markup:
    """Shares in bins of one `width` from 0 on."""
    return drawn(title, HEIGHT, _histogram(series, width, x_label, y_label))


def bars(title: str, groups: Sequence[BarGroup], x_label: str) -> Markup:
    """Horizontal bars from 0, grouped by label, with intervals as whiskers and marks as ticks."""
    return _bar_chart(title, groups, x_label, lambda number, _: CLASSES[number])


def differences(title: str, groups: Sequence[BarGroup], x_label: str) -> Markup:
    """The same for differences, coloured by their sign."""
    return _bar_chart(title, groups, x_label, lambda _, bar: "dearer" if bar.value > 0 else "cheaper")


def sorted_values(title: str, values: Values, x_label: str, y_label: str) -> Markup:
    """Values from the least to the greatest as an area around 0: what share of them lies on which side, and how far.

    Args:
        title: for screen readers.
        values: (values,), in any order; thousands are thinned to their quantiles.
        x_label: under the plot, an axis of per cent.
        y_label: above the vertical axis, with its unit.
    """
    return drawn(title, HEIGHT, _sorted_values(values, x_label, y_label))


def scatter(
    title: str, points: Sequence[Point], x_label: str, y_label: str, front: Sequence[tuple[float, float]] = ()
) -> Markup:
    """Points with their names, and a line through those that nothing beats.

    Args:
        title: for screen readers.
        points: at least one.
        x_label: under the plot, with its unit.
        y_label: above the vertical axis, with its unit.
        front: corners of the line, from the left.
    """
    return drawn(title, HEIGHT, _scatter(points, x_label, y_label, front))


def _scatter(
    points: Sequence[Point], x_label: str, y_label: str, front: Sequence[tuple[float, float]]
) -> Iterator[str]:
    across, up = [point.x for point in points], [point.y for point in points]
    x = Axis(*rounded_out(min(across), max(across)), LEFT, WIDTH - RIGHT - 2 * _GAP)
    y = vertical(min(up), max(up))
    yield from frame(x, y, x_label, y_label)
    yield from (x_tick(x(tick), tick_text(tick, x)) for tick in x.ticks())
    if len(front) > 1:
        yield f'<path class="reference" d="{path(front, x, y)}"/>'
    outlines = list(MARKS.values())
    for point in points:
        left, top = px(x(point.x)), px(y(point.y))
        outline = f'<path class="point first" d="M{left} {top}{outlines[point.mark % len(outlines)]}"/>'
        beside = f'<text class="tick" x="{px(x(point.x) + 6)}" y="{px(y(point.y) - 5)}">{escape(point.label)}</text>'
        yield f"<g><title>{escape(point.title)}</title>{outline}{beside}</g>"


def _steps(
    series: Sequence[Series], labels: Sequence[str], x_label: str, y_label: str, reference: Values | None
) -> Iterator[str]:
    heights = [one.y for one in series] + [one.band[1] for one in series if one.band]
    highest = float(np.nanmax(np.concatenate(heights if reference is None else [*heights, reference])))
    x = Axis(-0.5, len(labels) - 0.5, LEFT, WIDTH - RIGHT)
    y = vertical(0.0, highest)
    yield from frame(x, y, x_label, y_label)
    yield from (x_tick(x(place), label) for place, label in enumerate(labels))
    if reference is not None:
        yield f'<path class="reference" d="{path(enumerate(reference), x, y)}"/>'
    for number, (name, one) in enumerate(zip(CLASSES, series, strict=False)):
        # Two models stand a little apart, so that their whiskers do not cover each other.
        places = np.arange(len(one.y)) + (number - (len(series) - 1) / 2) * 0.16
        yield f'<path class="line {name}" d="{path(zip(places, one.y, strict=True), x, y)}"/>'
        for place, low, high in zip(places, *(one.band or (one.y, one.y)), strict=True):
            if low < high:
                yield f'<path class="whisker {name}" d="M{px(x(place))} {px(y(low))}V{px(y(high))}"/>'
        yield from (
            f'<circle class="point {name}" cx="{px(x(place))}" cy="{px(y(value))}" r="3.2"/>'
            for place, value in zip(places, one.y, strict=True)
            if not math.isnan(value)
        )


def _histogram(series: Sequence[Series], width: float, x_label: str, y_label: str) -> Iterator[str]:
    x = Axis(0.0, width * max(len(one.y) for one in series), LEFT, WIDTH - RIGHT)
    y = vertical(0.0, max(float(one.y.max()) for one in series))
    yield from frame(x, y, x_label, y_label)
    yield from (x_tick(x(tick), tick_text(tick, x)) for tick in x.ticks())
    for name, one in zip(CLASSES, series, strict=False):
        borders = width * np.arange(len(one.y) + 1)
        corners = [(end, share) for place, share in enumerate(one.y) for end in borders[place : place + 2]]
        outline = path([(0.0, 0.0), *corners, (borders[-1], 0.0)], x, y)
        if name == CLASSES[0]:
            yield f'<path class="area {name}" d="{outline}Z"/>'
        yield f'<path class="line {name}" d="{outline}"/>'


def _bar_chart(title: str, groups: Sequence[BarGroup], x_label: str, class_of: Callable[[int, Bar], str]) -> Markup:
    """Bars as thick as the usual height allows; many of them make the plot higher."""
    room = HEIGHT - TOP - BOTTOM - _GAP * len(groups)
    total = sum(len(group.bars) for group in groups)
    thickness = min(max(room / total, _THINNEST), _THICKEST)
    height = max(HEIGHT, TOP + BOTTOM + _GAP * len(groups) + thickness * total)
    return drawn(title, height, _bars(groups, x_label, class_of, thickness, height))


def _bars(
    groups: Sequence[BarGroup],
    x_label: str,
    class_of: Callable[[int, Bar], str],
    thickness: float,
    height: float,
) -> Iterator[str]:
    ends = [end for group in groups for bar in group.bars for end in _extent(bar)]
    axis = Axis(*rounded_out(min(0.0, *ends), max(0.0, *ends)), _LABEL_WIDTH, WIDTH - RIGHT - 4)
    bottom = height - BOTTOM
    for tick in axis.ticks():
        kind = "zero" if abs(tick) < axis.step / 2 else "grid"
        yield f'<path class="{kind}" d="M{px(axis(tick))} {TOP}V{px(bottom)}"/>'
        yield f'<text class="tick middle" x="{px(axis(tick))}" y="{px(bottom + 16)}">{tick_text(tick, axis)}</text>'
    middle = (axis.start + axis.end) / 2
    yield f'<text class="label middle" x="{px(middle)}" y="{px(height - 4)}">{escape(x_label)}</text>'
    distance = (bottom - TOP - thickness * sum(len(group.bars) for group in groups)) / len(groups)
    top = TOP + distance / 2
    for group in groups:
        label = f"<title>{escape(group.label)}</title>{escape(shortened(group.label, LABEL_LETTERS))}"
        centre = top + len(group.bars) * thickness / 2
        yield f'<text class="tick end" x="{_LABEL_WIDTH - 8}" y="{px(centre + 4)}">{label}</text>'
        for number, bar in enumerate(group.bars):
            yield from _bar(bar, class_of(number, bar), axis, top, thickness)
            top += thickness
        top += distance


def _bar(bar: Bar, name: str, axis: Axis, top: float, thickness: float) -> Iterator[str]:
    left, right = sorted((axis(0.0), axis(bar.value)))
    yield (
        f'<rect class="bar {name}" x="{px(left)}" y="{px(top + 0.5)}"'
        f' width="{px(right - left)}" height="{px(thickness - 1)}"/>'
    )
    if bar.interval:
        low, high = (px(axis(end)) for end in (bar.interval.low, bar.interval.high))
        caps = "".join(f"M{end} {px(top + thickness / 4)}v{px(thickness / 2)}" for end in (low, high))
        yield f'<path class="whisker" d="M{low} {px(top + thickness / 2)}H{high}{caps}"/>'
    if bar.mark is not None:
        yield f'<path class="mark" d="M{px(axis(bar.mark))} {px(top - 1)}v{px(thickness + 2)}"/>'


def _sorted_values(values: Values, x_label: str, y_label: str) -> Iterator[str]:
    points = min(len(values), WIDTH)
    heights = np.quantile(values, (np.arange(points) + 0.5) / points, method="hazen")  # few values are themselves
    x = Axis(0.0, 100.0, LEFT, WIDTH - RIGHT)
    y = vertical(min(0.0, float(heights[0])), max(0.0, float(heights[-1])))
    yield from frame(x, y, x_label, y_label)
    yield from (x_tick(x(tick), tick_text(tick, x)) for tick in x.ticks())
    borders = np.linspace(0, 100, points + 1)
    for name, kept in (("cheaper", np.minimum(heights, 0)), ("dearer", np.maximum(heights, 0))):
        corners = [(end, height) for place, height in enumerate(kept) for end in borders[place : place + 2]]
        yield f'<path class="area {name}" d="{path([(0.0, 0.0), *corners, (100.0, 0.0)], x, y)}Z"/>'
    yield f'<path class="zero" d="M{LEFT} {px(y(0.0))}H{WIDTH - RIGHT}"/>'


def _extent(bar: Bar) -> Iterator[float]:
    yield bar.value
    if bar.interval:
        yield from (bar.interval.low, bar.interval.high)
    if bar.mark is not None:
        yield bar.mark
