import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from perplab.errors import PerplabError
from perplab.evaluation.quantization import proxy_correlation


def points_with_correlation(correlation, count=40, seed=0):
    """Points whose sample correlation is exactly this."""
    random = np.random.default_rng(seed)
    x, noise = random.normal(size=(2, count))
    x = (x - x.mean()) / np.linalg.norm(x - x.mean())
    noise -= noise.mean()
    noise -= (noise @ x) * x
    return x, correlation * x + np.sqrt(1 - correlation**2) * noise / np.linalg.norm(noise)


@pytest.mark.parametrize("correlation", [-0.95, -0.3, 0.0, 0.5])
def test_a_known_correlation_is_recovered(correlation):
    x, y = points_with_correlation(correlation)
    found = proxy_correlation(x, y, ["one"] * len(x))
    assert found.pearson == pytest.approx(correlation, abs=1e-9)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_the_interval_is_that_of_fisher():
    x, y = points_with_correlation(-0.58, count=12)
    found = proxy_correlation(x, y, ["one"] * 12).interval
    expected = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (round(found.low, 2), round(found.high, 2)) == (-0.87, -0.01)


def test_a_correlation_that_is_only_size_vanishes_within_sizes():
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, 200)) * 0.3
    offset = np.repeat([0.0, 5.0], 100)
    found = proxy_correlation(offset + noise[0], -offset + noise[1], ["small"] * 100 + ["large"] * 100)
    assert found.pearson < -0.9
    assert abs(found.within) < 0.2
    assert found.within_interval.low < 0 < found.within_interval.high


def test_a_line_that_all_sizes_share_predicts_the_size_left_out():
    x = np.arange(12.0)
    found = proxy_correlation(x, 3 - 2 * x, ["a"] * 4 + ["b"] * 4 + ["c"] * 4)
    assert found.left_out_r2 == pytest.approx(1.0)
    assert found.pearson == pytest.approx(-1.0)
    assert found.within == pytest.approx(-1.0)


def test_one_size_has_nothing_to_leave_out():
    x, y = points_with_correlation(-0.5)
    found = proxy_correlation(x, y, ["one"] * len(x))
    assert found.left_out_r2 is None
    assert found.within == pytest.approx(found.pearson)


@given(st.integers(0, 100), st.floats(0.1, 10), st.floats(-5, 5))
def test_units_change_nothing(seed, scale, shift):
    x, y = points_with_correlation(-0.6, seed=seed)
    groups = ["a", "b"] * 20
    one, other = proxy_correlation(x, y, groups), proxy_correlation(scale * x + shift, scale * y + shift, groups)
    assert one.pearson == pytest.approx(other.pearson, abs=1e-9)
    assert one.within == pytest.approx(other.within, abs=1e-9)
    assert one.left_out_r2 == pytest.approx(other.left_out_r2, abs=1e-7)


def test_a_metric_that_is_the_same_everywhere_correlates_with_nothing():
    assert proxy_correlation([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], ["a", "a", "b"]) is None


@pytest.mark.parametrize(
    ("costs", "metric", "groups"),
    [([1.0], [1.0], ["a"]), ([1.0, 2.0], [1.0], ["a", "a"]), ([1.0, np.inf], [1.0, 2.0], "ab")],
)
def test_points_that_say_nothing_are_refused(costs, metric, groups):
    with pytest.raises(PerplabError):
        proxy_correlation(costs, metric, groups)
