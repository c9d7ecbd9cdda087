"""Plots as inline SVG, drawn here: the page takes no plotting library and no picture from elsewhere.

- Geometry only. Colours, weights and fonts are classes of the page's style sheet, so both themes and print restyle a
  plot without redrawing it; no `style` attribute is written, because the page's content policy refuses them.
- The first series is filled or solid, the second hatched or dashed: a plot reads in grey.
- A plot is a picture with a title for screen readers; its numbers stand in a table beside it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from perplab.report.parts import shortened
from perplab.scoring.bootstrap import Interval

Values = npt.NDArray[np.float64]

WIDTH = 400
HEIGHT = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 38
_GAP = 12
_THINNEST, _THICKEST = 11.0, 20.0
_LABEL_WIDTH = 108
_LABEL_LETTERS = 17
_CLASSES = ("first", "second")


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


MARKS = {
    "\N{BLACK CIRCLE}": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "\N{BLACK SQUARE}": "m-3.5 -3.5h7v7h-7z",
    "\N{BLACK UP-POINTING TRIANGLE}": "m0 -4.5l4.5 8h-9z",
    "\N{BLACK DIAMOND}": "m0 -5l5 5l-5 5l-5 -5z",
    "\N{BLACK DOWN-POINTING TRIANGLE}": "m0 4.5l4.5 -8h-9z",
    "\N{BLACK RIGHT-POINTING TRIANGLE}": "m4.5 0l-8 4.5v-9z",
    "\N{WHITE CIRCLE}": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0zm1.5 0a2.5 2.5 0 1 1 5 0a2.5 2.5 0 1 1 -5 0z",
}
"""Shapes of points, so that a plot of many kinds reads in grey: a sign for the text, and its outline."""


@dataclass(frozen=True)
class _Axis:
    """Values along one side of a plot."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def step(self) -> float:
        """A round distance that fits about five times."""
        return _round_step((self.high - self.low) / 5)

    def ticks(self) -> list[float]:
        """Multiples of the step."""
        first = math.ceil(self.low / self.step - 1e-9)
        return [number * self.step for number in range(first, math.floor(self.high / self.step + 1e-9) + 1)]


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
    return _drawn(title, HEIGHT, _steps(series, labels, x_label, y_label, reference))


def histogram(title: str, series: Sequence[Series], width: float, x_label: str, y_label: str) -> Markup:
    """Shares in bins of one `width` from 0 on."""
    return _drawn(title, HEIGHT, _histogram(series, width, x_label, y_label))


def bars(title: str, groups: Sequence[BarGroup], x_label: str) -> Markup:
    """Horizontal bars from 0, grouped by label, with intervals as whiskers and marks as ticks."""
    return _bar_chart(title, groups, x_label, lambda number, _: _CLASSES[number])


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
    return _drawn(title, HEIGHT, _sorted_values(values, x_label, y_label))


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
    return _drawn(title, HEIGHT, _scatter(points, x_label, y_label, front))


def _scatter(
    points: Sequence[Point], x_label: str, y_label: str, front: Sequence[tuple[float, float]]
) -> Iterator[str]:
    across, up = [point.x for point in points], [point.y for point in points]
    x = _Axis(*_rounded_out(min(across), max(across)), _LEFT, WIDTH - _RIGHT - 2 * _GAP)
    y = _vertical(min(up), max(up))
    yield from _frame(x, y, x_label, y_label)
    yield from (_x_tick(x(tick), _tick(tick, x)) for tick in x.ticks())
    if len(front) > 1:
        yield f'<path class="reference" d="{_path(front, x, y)}"/>'
    outlines = list(MARKS.values())
    for point in points:
        left, top = _px(x(point.x)), _px(y(point.y))
        outline = f'<path class="point first" d="M{left} {top}{outlines[point.mark % len(outlines)]}"/>'
        beside = f'<text class="tick" x="{_px(x(point.x) + 6)}" y="{_px(y(point.y) - 5)}">{escape(point.label)}</text>'
        yield f"<g><title>{escape(point.title)}</title>{outline}{beside}</g>"


def _steps(
    series: Sequence[Series], labels: Sequence[str], x_label: str, y_label: str, reference: Values | None
) -> Iterator[str]:
    heights = [one.y for one in series] + [one.band[1] for one in series if one.band]
    highest = float(np.nanmax(np.concatenate(heights if reference is None else [*heights, reference])))
    x = _Axis(-0.5, len(labels) - 0.5, _LEFT, WIDTH - _RIGHT)
    y = _vertical(0.0, highest)
    yield from _frame(x, y, x_label, y_label)
    yield from (_x_tick(x(place), label) for place, label in enumerate(labels))
    if reference is not None:
        yield f'<path class="reference" d="{_path(enumerate(reference), x, y)}"/>'
    for number, (name, one) in enumerate(zip(_CLASSES, series, strict=False)):
        # Two models stand a little apart, so that their whiskers do not cover each other.
        places = np.arange(len(one.y)) + (number - (len(series) - 1) / 2) * 0.16
        yield f'<path class="line {name}" d="{_path(zip(places, one.y, strict=True), x, y)}"/>'
        for place, low, high in zip(places, *(one.band or (one.y, one.y)), strict=True):
            if low < high:
                yield f'<path class="whisker {name}" d="M{_px(x(place))} {_px(y(low))}V{_px(y(high))}"/>'
        yield from (
            f'<circle class="point {name}" cx="{_px(x(place))}" cy="{_px(y(value))}" r="3.2"/>'
            for place, value in zip(places, one.y, strict=True)
            if not math.isnan(value)
        )


def _histogram(series: Sequence[Series], width: float, x_label: str, y_label: str) -> Iterator[str]:
    x = _Axis(0.0, width * max(len(one.y) for one in series), _LEFT, WIDTH - _RIGHT)
    y = _vertical(0.0, max(float(one.y.max()) for one in series))
    yield from _frame(x, y, x_label, y_label)
    yield from (_x_tick(x(tick), _tick(tick, x)) for tick in x.ticks())
    for name, one in zip(_CLASSES, series, strict=False):
        borders = width * np.arange(len(one.y) + 1)
        corners = [(end, share) for place, share in enumerate(one.y) for end in borders[place : place + 2]]
        outline = _path([(0.0, 0.0), *corners, (borders[-1], 0.0)], x, y)
        if name == _CLASSES[0]:
            yield f'<path class="area {name}" d="{outline}Z"/>'
        yield f'<path class="line {name}" d="{outline}"/>'


def _bar_chart(title: str, groups: Sequence[BarGroup], x_label: str, class_of: Callable[[int, Bar], str]) -> Markup:
    """Bars as thick as the usual height allows; many of them make the plot higher."""
    room = HEIGHT - _TOP - _BOTTOM - _GAP * len(groups)
    total = sum(len(group.bars) for group in groups)
    thickness = min(max(room / total, _THINNEST), _THICKEST)
    height = max(HEIGHT, _TOP + _BOTTOM + _GAP * len(groups) + thickness * total)
    return _drawn(title, height, _bars(groups, x_label, class_of, thickness, height))


def _bars(
    groups: Sequence[BarGroup],
    x_label: str,
    class_of: Callable[[int, Bar], str],
    thickness: float,
    height: float,
) -> Iterator[str]:
    ends = [end for group in groups for bar in group.bars for end in _extent(bar)]
    axis = _Axis(*_rounded_out(min(0.0, *ends), max(0.0, *ends)), _LABEL_WIDTH, WIDTH - _RIGHT - 4)
    bottom = height - _BOTTOM
    for tick in axis.ticks():
        kind = "zero" if abs(tick) < axis.step / 2 else "grid"
        yield f'<path class="{kind}" d="M{_px(axis(tick))} {_TOP}V{_px(bottom)}"/>'
        yield f'<text class="tick middle" x="{_px(axis(tick))}" y="{_px(bottom + 16)}">{_tick(tick, axis)}</text>'
    middle = (axis.start + axis.end) / 2
    yield f'<text class="label middle" x="{_px(middle)}" y="{_px(height - 4)}">{escape(x_label)}</text>'
    distance = (bottom - _TOP - thickness * sum(len(group.bars) for group in groups)) / len(groups)
    top = _TOP + distance / 2
    for group in groups:
        label = f"<title>{escape(group.label)}</title>{escape(shortened(group.label, _LABEL_LETTERS))}"
        centre = top + len(group.bars) * thickness / 2
        yield f'<text class="tick end" x="{_LABEL_WIDTH - 8}" y="{_px(centre + 4)}">{label}</text>'
        for number, bar in enumerate(group.bars):
            yield from _bar(bar, class_of(number, bar), axis, top, thickness)
            top += thickness
        top += distance


def _bar(bar: Bar, name: str, axis: _Axis, top: float, thickness: float) -> Iterator[str]:
    left, right = sorted((axis(0.0), axis(bar.value)))
    yield (
        f'<rect class="bar {name}" x="{_px(left)}" y="{_px(top + 0.5)}"'
        f' width="{_px(right - left)}" height="{_px(thickness - 1)}"/>'
    )
    if bar.interval:
        low, high = (_px(axis(end)) for end in (bar.interval.low, bar.interval.high))
        caps = "".join(f"M{end} {_px(top + thickness / 4)}v{_px(thickness / 2)}" for end in (low, high))
        yield f'<path class="whisker" d="M{low} {_px(top + thickness / 2)}H{high}{caps}"/>'
    if bar.mark is not None:
        yield f'<path class="mark" d="M{_px(axis(bar.mark))} {_px(top - 1)}v{_px(thickness + 2)}"/>'


def _sorted_values(values: Values, x_label: str, y_label: str) -> Iterator[str]:
    points = min(len(values), WIDTH)
    heights = np.quantile(values, (np.arange(points) + 0.5) / points, method="hazen")  # few values are themselves
    x = _Axis(0.0, 100.0, _LEFT, WIDTH - _RIGHT)
    y = _vertical(min(0.0, float(heights[0])), max(0.0, float(heights[-1])))
    yield from _frame(x, y, x_label, y_label)
    yield from (_x_tick(x(tick), _tick(tick, x)) for tick in x.ticks())
    borders = np.linspace(0, 100, points + 1)
    for name, kept in (("cheaper", np.minimum(heights, 0)), ("dearer", np.maximum(heights, 0))):
        corners = [(end, height) for place, height in enumerate(kept) for end in borders[place : place + 2]]
        yield f'<path class="area {name}" d="{_path([(0.0, 0.0), *corners, (100.0, 0.0)], x, y)}Z"/>'
    yield f'<path class="zero" d="M{_LEFT} {_px(y(0.0))}H{WIDTH - _RIGHT}"/>'


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> Iterator[str]:
    """Both axes but for the horizontal one's ticks."""
    for tick in y.ticks():
        yield f'<path class="grid" d="M{_LEFT} {_px(y(tick))}H{WIDTH - _RIGHT}"/>'
        yield f'<text class="tick end" x="{_LEFT - 6}" y="{_px(y(tick) + 4)}">{_tick(tick, y)}</text>'
    yield f'<path class="axis" d="M{_LEFT} {HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>'
    yield f'<text class="label" x="0" y="{_TOP}">{escape(y_label)}</text>'
    yield f'<text class="label middle" x="{_px((x.start + x.end) / 2)}" y="{HEIGHT - 4}">{escape(x_label)}</text>'


def _x_tick(place: float, label: str) -> str:
    bottom = HEIGHT - _BOTTOM
    text = f'<text class="tick middle" x="{_px(place)}" y="{bottom + 16}">{escape(label)}</text>'
    return f'<path class="axis" d="M{_px(place)} {bottom}v4"/>{text}'


def _vertical(low: float, high: float) -> _Axis:
    return _Axis(*_rounded_out(low, high), HEIGHT - _BOTTOM, _TOP + 16)


def _rounded_out(low: float, high: float) -> tuple[float, float]:
    """The range, widened to whole steps."""
    if high <= low:
        high = low + 1
    step = _round_step((high - low) / 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _extent(bar: Bar) -> Iterator[float]:
    yield bar.value
    if bar.interval:
        yield from (bar.interval.low, bar.interval.high)
    if bar.mark is not None:
        yield bar.mark


def _path(points: Iterable[tuple[float, float]], x: _Axis, y: _Axis) -> str:
    """A line through the points; those without a height are passed over."""
    return "M" + "L".join(f"{_px(x(across))} {_px(y(up))}" for across, up in points if not math.isnan(up))


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float, axis: _Axis) -> str:
    decimals = max(0, -math.floor(math.log10(axis.step) + 1e-9))
    return f"{0.0 if abs(value) < axis.step / 2 else value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _drawn(title: str, height: float, parts: Iterable[str]) -> Markup:
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {_px(height)}" role="img" aria-label="{escape(title)}">'
    return Markup(opening + "".join(parts) + "</svg>")
