"""Colours that keep their order and their contrast."""

import re

import numpy as np
import pytest

from perplab.report import colours

LADDERS = ("COSTS", "CHEAPER", "DEARER")
HEX = re.compile(r"#[0-9a-f]{6}")


def lightness(colour):
    """CIE lightness, which does not come from the code under test."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 116 * float(linear @ (0.2126, 0.7152, 0.0722)) ** (1 / 3) - 16


def ladder(theme, kind):
    steps = colours.COST_STEPS if kind == "COSTS" else colours.DIFFERENCE_STEPS + 1
    return colours.ramp(getattr(colours, f"_{theme}_{kind}"), steps)


@pytest.mark.parametrize("kind", LADDERS)
@pytest.mark.parametrize(("theme", "direction"), [("LIGHT", -1), ("DARK", 1)])
def test_lightness_moves_one_way_so_order_survives_grey_print(theme, direction, kind):
    found = [lightness(colour) for colour in ladder(theme, kind)]
    assert all(direction * step > 1 for step in np.diff(found))


@pytest.mark.parametrize("kind", LADDERS)
@pytest.mark.parametrize("theme", ["LIGHT", "DARK"])
def test_text_on_every_colour_has_the_contrast_that_small_text_needs(theme, kind):
    for colour in ladder(theme, kind):
        ink = {"#000": 0.0, "#fff": 1.0}[colours.text_on(colour)]
        background = ((lightness(colour) + 16) / 116) ** 3
        lighter, darker = max(ink, background), min(ink, background)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


@pytest.mark.parametrize("kind", LADDERS)
@pytest.mark.parametrize("theme", ["LIGHT", "DARK"])
def test_stops_lie_inside_what_a_screen_can_show(theme, kind):
    for stop in getattr(colours, f"_{theme}_{kind}"):
        linear = colours._TO_RGB @ (colours._TO_CONE @ np.array(colours._oklab(stop))) ** 3
        assert linear.min() > -2e-3
        assert linear.max() < 1 + 2e-3


def test_known_colours_come_out():
    white, black, red = (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.62796, 0.25768, 29.234)
    assert colours.ramp([white, black], 2) == ["#ffffff", "#000000"]
    assert colours.ramp([red, red], 1) == ["#ff0000"]
    assert colours.contrast("#ffffff", "#000000") == pytest.approx(21)
    assert colours.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_classes_follow_the_fixed_scale():
    costs = np.array([0.0, 0.49, 0.5, 3.2, 9.99, 10.0, 400.0])
    assert colours.cost_class(costs).tolist() == [0, 0, 1, 6, 19, 20, 20]
    assert colours.difference_class(np.array([-90, -0.6, -0.2, 0.0, 0.2, 0.6, 90])).tolist() == [-6, -1, 0, 0, 0, 1, 6]


def test_every_class_has_a_rule_with_a_colour_for_each_theme():
    css = colours.palette_css()
    sides = [f"{sign}{number}" for sign in "mp" for number in range(1, colours.DIFFERENCE_STEPS + 1)]
    for name in [*(f"c{number}" for number in range(colours.COST_STEPS)), *sides]:
        (rule,) = re.findall(rf"\.{name} \{{([^}}]*)\}}", css)
        assert len(set(HEX.findall(rule))) == 2
