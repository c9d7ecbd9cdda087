import re

import numpy as np
import pytest


def plot(*shown, **options):
    from perplab.report.curves import curves

    return str(curves("losses", shown, "step", "nats", **options))


def curve(name, x, y, **rest):
    from perplab.report.curves import Curve

    return Curve(name, np.asarray(x, dtype=float), np.asarray(y, dtype=float), **rest)


def places(drawing):
    """Where the points stand, by x and y."""
    return np.array([[float(part) for part in where] for where in re.findall(r'd="M([\d.]+) ([\d.]+)m', drawing)])


def test_every_known_value_is_a_point_with_its_numbers_and_a_gap_is_none():
    drawing = plot(curve("<b>", [0, 1, 2, 3], [1, np.nan, 3, 2]))
    assert drawing.count('class="point') == 3
    assert "&lt;b&gt;: 2, 3" in drawing
    assert "<b>" not in drawing


def test_a_lower_loss_stands_lower_and_a_later_step_further_right():
    where = places(plot(curve("a", [0, 1, 2], [3, 1, 2])))
    assert list(np.argsort(where[:, 0])) == [0, 1, 2]
    assert list(np.argsort(-where[:, 1])) == [1, 2, 0]


def test_equal_factors_are_equal_distances_on_an_axis_of_logarithms():
    where = places(plot(curve("a", [1, 10, 100], [1, 2, 3])))[:, 0]
    assert where[1] - where[0] == pytest.approx(where[2] - where[1], abs=0.11)
    linear = places(plot(curve("a", [1, 10, 100], [1, 2, 3]), logarithmic=False))[:, 0]
    assert (linear[2] - linear[1]) / (linear[1] - linear[0]) == pytest.approx(10, rel=0.05)


def test_points_apart_from_lines_have_no_line():
    drawing = plot(curve("law", [1, 2, 3], [3, 2, 1]), curve("held out", [1, 2, 3], [3, 2, 1], joined=False))
    assert drawing.count('class="line') == 1


def test_names_of_lines_that_end_together_do_not_lie_on_each_other():
    drawing = plot(*(curve(f"arm {number}", [0, 1], [1, 1 + number / 1000]) for number in range(7)))
    heights = sorted(float(found) for found in re.findall(r'class="tick" x="[\d.]+" y="([\d.-]+)"><title>arm', drawing))
    assert len(heights) == 7
    assert min(np.diff(heights)) >= 11


def test_an_axis_from_zero_holds_zero_and_an_interval_is_a_whisker():
    shown = curve("a", [0, 1], [5, 6], band=(np.array([4.0, 5.0]), np.array([6.0, 7.0])))
    drawing = plot(shown, from_zero=True)
    assert drawing.count("whisker") == 2
    assert ">0<" in drawing


def test_more_names_than_there_is_room_for_are_still_drawn():
    drawing = plot(*(curve(f"arm {number}", [0, 1], [1, 1 + number / 1000]) for number in range(40)))
    assert drawing.count("<title>arm") == 120
