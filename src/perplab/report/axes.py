"""What every plot stands on: its room, its axes, their ticks, and the shapes of points."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Values = npt.NDArray[np.float64]

WIDTH = 400
HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 38
CLASSES = ("first", "second")
"""Classes of the style sheet."""

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
class Axis:
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


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[str]:
    """Both axes but for the horizontal one's ticks."""
    for tick in y.ticks():
        yield f'<path class="grid" d="M{LEFT} {px(y(tick))}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick end" x="{LEFT - 6}" y="{px(y(tick) + 4)}">{tick_text(tick, y)}</text>'
    yield f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    yield f'<text class="label" x="0" y="{TOP}">{escape(y_label)}</text>'
    yield f'<text class="label middle" x="{px((x.start + x.end) / 2)}" y="{HEIGHT - 4}">{escape(x_label)}</text>'


def x_tick(place: float, label: str) -> str:
    """A tick of the horizontal axis at `place` pixels, with its label."""
    bottom = HEIGHT - BOTTOM
    text = f'<text class="tick middle" x="{px(place)}" y="{bottom + 16}">{escape(label)}</text>'
    return f'<path class="axis" d="M{px(place)} {bottom}v4"/>{text}'


def vertical(low: float, high: float) -> Axis:
    """The vertical axis of a plot of the usual height, over whole steps."""
    return Axis(*rounded_out(low, high), HEIGHT - BOTTOM, TOP + 16)


def rounded_out(low: float, high: float) -> tuple[float, float]:
    """The range, widened to whole steps."""
    if high <= low:
        high = low + 1
    step = _round_step((high - low) / 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def path(points: Iterable[tuple[float, float]], x: Axis, y: Axis) -> str:
    """A line through the points; those without a height are passed over."""
    return "M" + "L".join(f"{px(x(across))} {px(y(up))}" for across, up in points if not math.isnan(up))


def px(value: float) -> str:
    """A coordinate as SVG has it."""
    return f"{value:.1f}".removesuffix(".0")


def tick_text(value: float, axis: Axis) -> str:
    """A tick's value, with the decimals that the axis needs."""
    decimals = max(0, -math.floor(math.log10(axis.step) + 1e-9))
    return f"{0.0 if abs(value) < axis.step / 2 else value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def drawn(title: str, height: float, parts: Iterable[str]) -> Markup:
    """The picture, with a title for screen readers."""
    opening = f'<svg class="plot" viewBox="0 0 {WIDTH} {px(height)}" role="img" aria-label="{escape(title)}">'
    return Markup(opening + "".join(parts) + "</svg>")
