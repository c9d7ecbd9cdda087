"""Intervals of figures over documents: closed forms, an independent bootstrap, and coverage."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import Interval, bootstrap_paired, bootstrap_ratio, resampled_ratios


def documents(number, seed=0):
    """Nats and tokens of documents with log-normal lengths and a level of their own each."""
    random = np.random.default_rng(seed)
    tokens = np.ceil(np.exp(random.normal(5, 1, number)))
    level = 3 + random.normal(0, 0.5, number)
    return tokens * level + random.normal(0, 3, number) * np.sqrt(tokens), tokens


def test_equal_documents_give_an_interval_of_no_width():
    interval = bootstrap_ratio([2.0, 4.0, 10.0], [1.0, 2.0, 5.0])
    assert (interval.low, interval.high) == (2.0, 2.0)


def test_the_interval_of_many_documents_is_that_of_the_delta_method():
    nats, tokens = documents(3000)
    ratio = nats.sum() / tokens.sum()
    error = math.sqrt(((nats - ratio * tokens) ** 2).sum()) / tokens.sum()
    interval = bootstrap_ratio(nats, tokens, resamples=4000)
    assert interval.low == pytest.approx(ratio - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(ratio + 1.96 * error, abs=0.15 * error)


def test_resamples_agree_with_a_bootstrap_written_as_a_loop():
    nats, tokens = documents(40)
    random = np.random.default_rng(1)
    naive = []
    for _ in range(20_000):
        drawn = random.choice(40, size=40)
        naive.append(sum(nats[i] for i in drawn) / sum(tokens[i] for i in drawn))
    (ratio,) = resampled_ratios(nats[:, None], tokens[:, None], resamples=20_000)
    shares = np.linspace(0.01, 0.99, 25)
    spread = np.std(naive)
    np.testing.assert_allclose(np.quantile(ratio.ordered, shares), np.quantile(naive, shares), atol=0.08 * spread)


def test_tails_are_widened_by_students_distribution_and_the_effective_number_of_documents():
    nats, tokens = documents(25)
    (ratio,) = resampled_ratios(nats[:, None], tokens[:, None], resamples=9999)
    effective = tokens.sum() ** 2 / (tokens**2).sum()
    tail = norm.cdf(student.ppf(0.025, effective - 1) * math.sqrt(effective / (effective - 1)))
    interval = ratio.interval(0.95)
    assert (ratio.ordered < interval.low).mean() == pytest.approx(tail, abs=2e-4)
    assert (ratio.ordered > interval.high).mean() == pytest.approx(tail, abs=2e-4)


def test_all_figures_of_a_table_come_from_the_same_draws():
    nats, tokens = documents(30)
    columns = np.stack((nats, 2 * nats, nats), axis=1), np.stack((tokens, tokens, tokens), axis=1)
    one, twice, again = resampled_ratios(*columns, resamples=500)
    np.testing.assert_allclose(2 * one.ordered, twice.ordered)
    np.testing.assert_array_equal(one.ordered, again.ordered)
    alone = bootstrap_ratio(nats, tokens, resamples=500)
    assert (alone.low, alone.high) == pytest.approx((one.interval().low, one.interval().high))


def test_a_transform_is_applied_to_the_ends():
    nats, tokens = documents(30)
    plain, perplexity = bootstrap_ratio(nats, tokens), bootstrap_ratio(nats, tokens, transform=math.exp)
    assert perplexity == Interval(math.exp(plain.low), math.exp(plain.high), 0.95)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    nats, tokens = documents(30)
    assert bootstrap_ratio(nats, tokens, seed=3) == bootstrap_ratio(nats, tokens, seed=3)
    assert bootstrap_ratio(nats, tokens, seed=3) != bootstrap_ratio(nats, tokens, seed=4)


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(1, 9)), min_size=2, max_size=12),
    st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
def test_the_p_value_is_within_the_level_exactly_where_the_interval_leaves_zero_out(pairs, level):
    changes, tokens = np.array(pairs, dtype=float).T
    found = bootstrap_paired(np.zeros(len(pairs)), changes, tokens, resamples=999, level=level)
    assert (found.p_value <= 1 - level) == (not found.interval.low <= 0 <= found.interval.high)


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 9)), min_size=2, max_size=12))
def test_swapping_the_models_negates_the_difference(rows):
    first, second, tokens = np.array(rows).T
    there = bootstrap_paired(first, second, tokens, resamples=200)
    back = bootstrap_paired(second, first, tokens, resamples=200)
    assert back.value == -there.value
    assert (back.interval.low, back.interval.high) == (-there.interval.high, -there.interval.low)
    assert back.p_value == there.p_value


def test_a_model_does_not_differ_from_itself():
    nats, tokens = documents(20)
    found = bootstrap_paired(nats, nats, tokens)
    assert (found.value, found.interval.low, found.interval.high, found.p_value) == (0, 0, 0, 1)


def test_without_denominators_the_difference_is_one_of_means():
    found = bootstrap_paired([0, 1, 0, 0], [1, 1, 0, 1])
    assert found.value == 0.5


def test_p_values_are_even_where_nothing_differs():
    random = np.random.default_rng(0)
    found = [
        bootstrap_paired(np.zeros(60), random.normal(0, 1, 60), random.integers(1, 5, 60), resamples=200).p_value
        for _ in range(400)
    ]
    for level in (0.1, 0.3, 0.5, 0.8):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.08)


def test_two_documents_give_a_finite_interval_that_holds_both():
    interval = bootstrap_ratio([10.0, 60.0], [10.0, 30.0])
    assert -math.inf < interval.low < 1
    assert 2 < interval.high < math.inf


def test_a_figure_of_one_document_has_no_interval():
    columns = np.array([[1.0, 1.0], [2.0, 0.0], [1.5, 0.0]])
    told, untold = resampled_ratios(columns, np.sign(columns))
    assert told.interval().low < 1.5 < told.interval().high
    assert untold is None
    with pytest.raises(PerplabError, match="fewer than two documents"):
        bootstrap_ratio([1.0], [1.0])


@pytest.mark.parametrize(
    ("numerators", "denominators", "settings", "named"),
    [
        ([1, math.nan], [1, 1], {}, "not finite"),
        ([1, 2], [1, -1], {}, "below zero"),
        ([1, 2], [1, 1, 1], {}, "2 numerators stand over 3 denominators"),
        ([1, 2], [1, 1], {"resamples": 10}, "10 bootstrap resamples"),
        ([1, 2], [1, 1], {"level": 95}, "level 95"),
        ([1, 2], [0, 0], {}, "fewer than two documents"),
    ],
)
def test_what_gives_no_interval_is_refused(numerators, denominators, settings, named):
    with pytest.raises(PerplabError, match=named):
        bootstrap_ratio(numerators, denominators, **settings)


def test_models_with_different_numbers_of_documents_are_not_paired():
    with pytest.raises(PerplabError, match="2 documents are paired with 3"):
        bootstrap_paired([1, 2], [1, 2, 3])


def test_an_interval_formats_both_ends():
    assert f"{Interval(0.0251, 0.0372, 0.95):.3f}" == "[0.025, 0.037]"


@pytest.mark.slow
def test_ten_thousand_resamples_of_ten_thousand_documents_take_under_two_seconds_and_200_megabytes():
    nats, tokens = documents(10_000)
    started = time.process_time()
    bootstrap_ratio(nats, tokens)
    assert time.process_time() - started < 2
    tracemalloc.start()
    bootstrap_ratio(nats, tokens, resamples=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.slow
@pytest.mark.parametrize("number", [30, 60, 200])
def test_coverage_at_95_percent_of_a_mean_cost_is_93_to_97(number):
    simulated = (documents(number, seed) for seed in range(4000))
    intervals = [
        bootstrap_ratio(nats, tokens, resamples=1000, seed=seed) for seed, (nats, tokens) in enumerate(simulated)
    ]
    assert 0.93 <= np.mean([interval.low <= 3 <= interval.high for interval in intervals]) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("number", [30, 60, 200])
def test_coverage_at_95_percent_of_a_paired_difference_is_93_to_97(number):
    covered = 0
    for seed in range(4000):
        nats, tokens = documents(number, seed)
        random = np.random.default_rng((1, seed))
        change = 0.02 + 0.05 * random.standard_t(5, number)  # of all tokens of a document
        other = nats + tokens * change + random.normal(0, 0.3, number) * np.sqrt(tokens)
        interval = bootstrap_paired(nats, other, tokens, resamples=1000, seed=seed).interval
        covered += interval.low <= 0.02 <= interval.high
    assert 0.93 <= covered / 4000 <= 0.97
