"""Geometry of the plots: what is drawn stands where its value says."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.report import axes, plots
from perplab.scoring.bootstrap import Interval

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
HOSTILE = "</svg><script>1</script>&"


def drawn(markup):
    return ElementTree.fromstring(markup)


def classed(tree, *names):
    return [element for element in tree.iter() if set(names) <= set(element.get("class", "").split())]


def numbers(path):
    return [float(found) for found in NUMBER.findall(path)]


def scale(tree, kind):
    """Pixels of a tick's value: the line through the outermost ticks of one axis."""
    ticks = classed(tree, "tick", kind)
    along = "x" if kind == "middle" else "y"
    values = [float(tick.text.replace("\N{MINUS SIGN}", "-").replace(",", "")) for tick in ticks]
    below = 0 if along == "x" else 4  # a number hangs on its line by its middle, which is 4 above its foot
    places = [float(tick.get(along)) - below for tick in ticks]
    slope, intercept = np.polyfit(values, places, 1)
    np.testing.assert_allclose(np.polyval([slope, intercept], values), places, atol=0.11)
    return lambda value: slope * value + intercept


def bar_chart(*bars, draw=plots.bars):
    return drawn(draw("t", [plots.BarGroup(f"g{number}", [bar]) for number, bar in enumerate(bars)], "unit"))


@given(st.lists(st.floats(-1e4, 1e4).filter(lambda value: abs(value) > 1e-6), min_size=1, max_size=8))
def test_bars_reach_from_zero_to_their_values(values):
    tree = bar_chart(*map(plots.Bar, values))
    at = scale(tree, "middle")
    for value, rectangle in zip(values, classed(tree, "bar"), strict=True):
        left, width = float(rectangle.get("x")), float(rectangle.get("width"))
        np.testing.assert_allclose((left, left + width), sorted((at(0), at(value))), atol=0.25)


def test_whiskers_and_marks_stand_where_they_should():
    tree = bar_chart(plots.Bar(2.0, Interval(1.5, 3.25, 0.95), mark=0.5))
    at = scale(tree, "middle")
    (whisker,), (mark,) = classed(tree, "whisker"), classed(tree, "mark")
    low, _, high = numbers(whisker.get("d"))[:3]
    np.testing.assert_allclose((low, high), (at(1.5), at(3.25)), atol=0.15)
    assert numbers(mark.get("d"))[0] == pytest.approx(at(0.5), abs=0.15)


def test_differences_are_coloured_by_their_sign():
    tree = bar_chart(plots.Bar(-1.0), plots.Bar(1.0), draw=plots.differences)
    assert [bar.get("class") for bar in classed(tree, "bar")] == ["bar cheaper", "bar dearer"]


def test_bars_do_not_overlap_and_many_make_the_plot_higher():
    few, many = bar_chart(*[plots.Bar(1.0)] * 3), bar_chart(*[plots.Bar(1.0)] * 40)
    for tree in (few, many):
        spans = [(float(bar.get("y")), float(bar.get("height"))) for bar in classed(tree, "bar")]
        assert all(top + height <= below for (top, height), (below, _) in pairwise(spans))
        assert spans[-1][0] + spans[-1][1] < float(tree.get("viewBox").split()[3])
    assert float(many.get("viewBox").split()[3]) > float(few.get("viewBox").split()[3])


def test_two_models_are_told_apart_by_class_in_every_plot():
    y = np.array([1.0, 2.0, 3.0])
    pair = [plots.Series(y), plots.Series(y + 1)]
    group = plots.BarGroup("g", [plots.Bar(1.0), plots.Bar(2.0)])
    for markup in (
        plots.steps("t", pair, ["a", "b", "c"], "x", "y"),
        plots.histogram("t", pair, 0.5, "x", "y"),
        plots.bars("t", [group], "x"),
    ):
        assert classed(drawn(markup), "first")
        assert classed(drawn(markup), "second")


def test_points_and_their_intervals_stand_at_their_values_and_missing_ones_are_passed_over():
    y = np.array([1.0, np.nan, 3.0])
    band = (np.array([0.5, np.nan, np.nan]), np.array([1.5, np.nan, np.nan]))
    tree = drawn(plots.steps("t", [plots.Series(y, band)], ["a", "b", "c"], "x", "y", np.array([1.0, 1.0, 2.0])))
    at = scale(tree, "end")
    points, (whisker,) = classed(tree, "point"), classed(tree, "whisker")
    np.testing.assert_allclose([float(point.get("cy")) for point in points], [at(1.0), at(3.0)], atol=0.15)
    np.testing.assert_allclose(numbers(whisker.get("d"))[1:], [at(0.5), at(1.5)], atol=0.15)
    assert len(classed(tree, "reference")) == 1


def test_a_histogram_is_as_high_as_its_shares():
    shares = np.array([10.0, 40.0, 50.0])
    tree = drawn(plots.histogram("t", [plots.Series(shares)], 0.5, "x", "y"))
    across, up = scale(tree, "middle"), scale(tree, "end")
    coordinates = np.array(numbers(classed(tree, "line")[0].get("d"))).reshape(-1, 2)
    expected = [(0, 0), (0, 10), (0.5, 10), (0.5, 40), (1, 40), (1, 50), (1.5, 50), (1.5, 0)]
    np.testing.assert_allclose(coordinates, [(across(x), up(y)) for x, y in expected], atol=0.15)


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_sorted_values_cover_as_much_below_zero_as_above_it_in_proportion(count):
    values = np.linspace(-1, 3, count)
    tree = drawn(plots.sorted_values("t", np.random.default_rng(0).permutation(values), "x", "y"))
    up = scale(tree, "end")
    areas = {}
    for side in ("cheaper", "dearer"):
        coordinates = np.array(numbers(classed(tree, "area", side)[0].get("d"))).reshape(-1, 2)
        widths, heights = np.diff(coordinates[:, 0]), coordinates[:-1, 1] - up(0)
        areas[side] = abs(float(widths @ heights))
    pixels = abs(up(1) - up(0)) * (axes.WIDTH - axes.LEFT - axes.RIGHT)
    assert areas["cheaper"] == pytest.approx(-np.minimum(values, 0).mean() * pixels, rel=0.02, abs=20)
    assert areas["dearer"] == pytest.approx(np.maximum(values, 0).mean() * pixels, rel=0.02, abs=20)


def test_thousands_of_values_stay_a_small_plot():
    assert len(plots.sorted_values("t", np.random.default_rng(0).normal(size=100_000), "x", "y")) < 30_000


@given(st.floats(1e-6, 1e9), st.floats(-1, 1))
def test_axes_hold_all_values_between_round_ticks(size, middle):
    low, high = middle * size - size, middle * size + size
    start, end = axes.rounded_out(low, high)
    assert start <= low + 1e-9 * size
    assert end >= high - 1e-9 * size
    axis = axes.Axis(start, end, 0, 100)
    assert 2 <= len(axis.ticks()) <= 9
    assert len({axes.tick_text(tick, axis) for tick in axis.ticks()}) == len(axis.ticks())


def test_words_are_escaped_and_long_labels_keep_their_whole_in_a_title():
    label = HOSTILE * 3
    tree = drawn(plots.bars(HOSTILE, [plots.BarGroup(label, [plots.Bar(1.0)])], HOSTILE))
    assert tree.get("aria-label") == HOSTILE
    assert [element.text for element in tree.iter("title")] == [label]
    assert not list(tree.iter("script"))
