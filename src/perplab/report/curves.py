"""Lines over a numeric axis: losses along a run, along a direction, along compute.

- Up to seven lines. Each has the shape of its points, and its name stands at its end; the first two also differ in
  colour and dash. A plot reads in grey.
- A horizontal axis over powers of ten is one of logarithms, where every value is above 0.
- Points may stand apart from the lines: what was measured beside what was predicted.
"""

import math
from collections.abc import Iterator, Sequence
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

_NAME_ROOM = 74
_NAME_LETTERS = 11
_NAME_HEIGHT = 11
_HEIGHTS = range(TOP + 16, HEIGHT - BOTTOM + 8)
_POWERS_FROM = 5.0
"""Ratio of the ends of a horizontal axis from which it is one of logarithms, where it may be."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One line.

    Attributes:
        name: what it is.
        x: (points,), ascending.
        y: (points,); NaN where there is none.
        band: lower and upper borders of an interval, each (points,).
        joined: whether a line goes through the points.
    """

    name: str
    x: Values
    y: Values
    band: tuple[Values, Values] | None = None
    joined: bool = True


def curves(
    title: str, shown: Sequence[Curve], x_label: str, y_label: str, *, logarithmic: bool = True, from_zero: bool = False
) -> Markup:
    """Lines over one axis.

    Args:
        title: for screen readers.
        shown: at least one curve, at most as many as there are `MARKS`.
        x_label: under the plot, with its unit.
        y_label: above the vertical axis, with its unit.
        logarithmic: whether the horizontal axis may be one of logarithms, if values span powers of ten.
        from_zero: whether the vertical axis begins at 0.
    """
    return drawn(title, HEIGHT, _curves(shown, x_label, y_label, logarithmic, from_zero))


def _curves(shown: Sequence[Curve], x_label: str, y_label: str, logarithmic: bool, from_zero: bool) -> Iterator[str]:
    across = np.concatenate([curve.x for curve in shown])
    heights = np.concatenate([end for curve in shown for end in (curve.y, *(curve.band or ()))])
    powers = logarithmic and across.min() > 0 and across.max() / across.min() >= _POWERS_FROM
    room = _NAME_ROOM if len(shown) > 1 else 0
    ends = np.log10([across.min(), across.max()]) if powers else np.array([across.min(), across.max()])
    low, high = (float(ends[0]) - 0.02, float(ends[1]) + 0.02) if powers else rounded_out(*map(float, ends))
    x = Axis(low, high, LEFT, WIDTH - RIGHT - room)
    least = float(np.nanmin(heights))
    y = vertical(min(0.0, least) if from_zero else least, float(np.nanmax(heights)))
    yield from frame(x, y, x_label, y_label)
    yield from _ticks(x, powers)
    last_names: list[float] = []
    for number, curve in enumerate(shown):
        places = np.log10(curve.x) if powers else curve.x
        yield from _curve(curve, number, places, x, y)
        if room:
            yield _name(curve, places, x, y, last_names)


def _ticks(x: Axis, powers: bool) -> Iterator[str]:
    if not powers:
        yield from (x_tick(x(tick), tick_text(tick, x)) for tick in x.ticks())
        return
    powers_within = range(math.ceil(x.low), math.floor(x.high) + 1)
    factors = (1,) if len(powers_within) > 2 else (1, 2, 5)
    for power in range(math.floor(x.low), math.floor(x.high) + 1):
        for factor in factors:
            if x.low <= math.log10(factor) + power <= x.high:
                yield x_tick(x(math.log10(factor) + power), _short(factor * 10.0**power))


def _short(value: float) -> str:
    """A round number in few letters: 200k, 5M, 2e9."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if unit <= value < 1e9:
            return f"{value / unit:g}{letter}"
    return f"{value:g}" if 1e-4 < value < 1e3 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def _curve(curve: Curve, number: int, places: Values, x: Axis, y: Axis) -> Iterator[str]:
    kind = CLASSES[number % len(CLASSES)]
    outline = list(MARKS.values())[number % len(MARKS)]
    if curve.joined and len(places) > 1:
        yield f'<path class="line {kind}" d="{path(zip(places, curve.y, strict=True), x, y)}"/>'
    for place, low, high in zip(places, *(curve.band or (curve.y, curve.y)), strict=True):
        if low < high:
            yield f'<path class="whisker {kind}" d="M{px(x(place))} {px(y(low))}V{px(y(high))}"/>'
    for place, value, given in zip(places, curve.y, curve.x, strict=True):
        if not math.isnan(value):
            told = f"<title>{escape(curve.name)}: {given:g}, {value:.4g}</title>"
            yield f'<g>{told}<path class="point {kind}" d="M{px(x(place))} {px(y(value))}{outline}"/></g>'


def _name(curve: Curve, places: Values, x: Axis, y: Axis, taken: list[float]) -> str:
    """The curve's name at its right end, moved away from the names that stand there already."""
    known = np.flatnonzero(~np.isnan(curve.y))
    wanted = y(float(curve.y[known[-1]])) + 4
    free = [height for height in _HEIGHTS if all(abs(height - other) >= _NAME_HEIGHT for other in taken)]
    if free and any(abs(wanted - other) < _NAME_HEIGHT for other in taken):
        wanted = min(free, key=lambda height: abs(height - wanted))
    taken.append(wanted)
    left = max(x(float(places[known[-1]])), x.end) + 8
    label = f"<title>{escape(curve.name)}</title>{escape(shortened(curve.name, _NAME_LETTERS))}"
    return f'<text class="tick" x="{px(left)}" y="{px(wanted)}">{label}</text>'
