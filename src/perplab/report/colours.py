"""The colours that stand for costs and for differences, in both themes.

- Stops are given in OKLCH and joined by straight lines in OKLab, where equal steps look equally large.
- Lightness moves in one direction from the page outwards, so the order of costs survives grey print and every kind of
  colour blindness. In the light theme dear tokens are dark; in the dark theme they are bright.
- Differences run to blue on one side and to orange on the other, the pair that all common kinds of colour vision tell
  apart; the page also underlines the one and dots the other.
- Text on a colour is black or white, whichever contrasts more; that is never below 4.5 to 1.
- Costs have a fixed scale, so the same colour means the same cost in every report.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

COST_STEP = 0.5
"""Nats a colour stands for."""
COST_STEPS = 21
"""Colours of costs: from 0 nats, and the last for 10 nats and everything above."""
DIFFERENCE_STEPS = 6
"""Colours of differences on each side of none, `COST_STEP` apart."""

Lch = tuple[float, float, float]  # lightness, chroma, hue in degrees

_LIGHT_COSTS: tuple[Lch, ...] = (
    (0.995, 0.003, 95),
    (0.955, 0.060, 98),
    (0.875, 0.110, 80),
    (0.760, 0.140, 50),
    (0.620, 0.170, 20),
    (0.480, 0.165, 350),
    (0.340, 0.120, 320),
)
_DARK_COSTS: tuple[Lch, ...] = (
    (0.215, 0.006, 280),
    (0.295, 0.070, 300),
    (0.390, 0.120, 330),
    (0.510, 0.155, 0),
    (0.640, 0.160, 30),
    (0.780, 0.140, 65),
    (0.920, 0.120, 98),
)
_LIGHT_CHEAPER: tuple[Lch, ...] = ((0.995, 0.003, 95), (0.860, 0.065, 240), (0.600, 0.125, 248), (0.470, 0.120, 252))
_LIGHT_DEARER: tuple[Lch, ...] = ((0.995, 0.003, 95), (0.890, 0.075, 70), (0.700, 0.145, 52), (0.550, 0.135, 45))
_DARK_CHEAPER: tuple[Lch, ...] = ((0.215, 0.006, 280), (0.360, 0.070, 250), (0.560, 0.115, 246), (0.780, 0.095, 238))
_DARK_DEARER: tuple[Lch, ...] = ((0.215, 0.006, 280), (0.370, 0.070, 50), (0.590, 0.130, 52), (0.820, 0.120, 75))


def cost_class(nats: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Number of the colour of each cost, 0 to `COST_STEPS - 1`; same shape."""
    number: npt.NDArray[np.int64] = np.clip(np.floor(nats / COST_STEP), 0, COST_STEPS - 1).astype(np.int64)
    return number


def difference_class(nats: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Number of the colour of each difference, `-DIFFERENCE_STEPS` to `DIFFERENCE_STEPS`, 0 for none; same shape."""
    steps = np.clip(np.rint(nats / COST_STEP), -DIFFERENCE_STEPS, DIFFERENCE_STEPS)
    number: npt.NDArray[np.int64] = steps.astype(np.int64)
    return number


def palette_css() -> str:
    """Rules for the classes `c0`, `c1`, ... of costs, and `m6` to `m1`, `p1` to `p6` of differences (minus, plus)."""
    return "\n".join(_rules())


def _rules() -> Iterator[str]:
    costs = zip(ramp(_LIGHT_COSTS, COST_STEPS), ramp(_DARK_COSTS, COST_STEPS), strict=True)
    yield from (_rule(f".c{number}", *pair) for number, pair in enumerate(costs))
    for sign, light, dark in (("m", _LIGHT_CHEAPER, _DARK_CHEAPER), ("p", _LIGHT_DEARER, _DARK_DEARER)):
        pairs = zip(ramp(light, DIFFERENCE_STEPS + 1), ramp(dark, DIFFERENCE_STEPS + 1), strict=True)
        # A difference shows in its own view only; there it takes the place of the cost.
        yield from (
            _rule(f"[data-view=difference] .text .{sign}{number}, .steps .{sign}{number}", *pair)
            for number, pair in enumerate(pairs)
            if number
        )


def _rule(selector: str, light: str, dark: str) -> str:
    inks = f"light-dark({text_on(light)},{text_on(dark)})"
    return f"{selector} {{ background-color: light-dark({light},{dark}); color: {inks}; }}"


def ramp(stops: Sequence[Lch], steps: int) -> list[str]:
    """`steps` colours from the first stop to the last as `#rrggbb`, evenly spaced over the stops in OKLab."""
    points = np.array([_oklab(stop) for stop in stops])
    places = np.linspace(0, len(stops) - 1, steps)
    channels = [np.interp(places, np.arange(len(stops)), points[:, channel]) for channel in range(3)]
    return [_hex(lab) for lab in np.stack(channels, axis=1)]


def text_on(background: str) -> str:
    """Black or white, whichever contrasts more with a `#rrggbb`."""
    return max(("#000", "#fff"), key=lambda ink: contrast(background, "#000000" if ink == "#000" else "#ffffff"))


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two `#rrggbb`, 1 to 21."""
    dark, light = sorted((_luminance(first), _luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _oklab(colour: Lch) -> tuple[float, float, float]:
    lightness, chroma, hue = colour
    return lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))


_TO_CONE = np.array(
    ((1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728), (1, -0.0894841775, -1.2914855480))
)
_TO_RGB = np.array(
    (
        (4.0767416621, -3.3077115913, 0.2309699292),
        (-1.2684380046, 2.6097574011, -0.3413193965),
        (-0.0041960863, -0.7034186147, 1.7076147010),
    )
)


def _hex(lab: npt.NDArray[np.float64]) -> str:
    linear = np.clip(_TO_RGB @ (_TO_CONE @ lab) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(value * 255):02x}" for value in encoded)
