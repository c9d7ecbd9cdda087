"""Does perplexity rank task scores: correlations against scipy, and the variants that break the rule."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from perplab.evaluation.proxy_verdict import VariantOutcome, proxy_verdict, rank_correlations
from perplab.scoring.bootstrap import Interval, PairedDifference

few_values = st.integers(0, 3)


def difference(value, p_value=0.001):
    return PairedDifference(value, Interval(value - 1, value + 1, 0.95), p_value)


def outcome(name, bits, **scores):
    given = {
        task: score if isinstance(score, PairedDifference) else difference(score) for task, score in scores.items()
    }
    return VariantOutcome(name, bits if isinstance(bits, PairedDifference) else difference(bits), given)


@given(st.lists(st.tuples(few_values, few_values, st.integers(0, 3)), min_size=2, max_size=8))
def test_rank_correlations_equal_scipys_on_the_sample_written_out(rows):
    first, second, times = np.array(rows).T
    drawn, other = np.repeat(first, times), np.repeat(second, times)
    assume(len(set(drawn)) > 1 and len(set(other)) > 1)
    spearman, kendall = rank_correlations(first.astype(float), second.astype(float), times[None].astype(float))
    assert spearman[0] == pytest.approx(spearmanr(drawn, other).statistic)
    assert kendall[0] == pytest.approx(kendalltau(drawn, other).statistic)


def test_ties_on_one_side_have_no_correlation():
    spearman, kendall = rank_correlations(np.ones(3), np.arange(3.0), np.ones((1, 3)))
    assert np.isnan(spearman[0])
    assert np.isnan(kendall[0])


def test_scores_that_fall_as_cost_rises_agree_perfectly():
    outcomes = [outcome(str(step), 0.1 * step, cloze=-0.02 * step) for step in range(6)]
    verdict = proxy_verdict(outcomes)
    (agreement,) = verdict.agreements
    assert verdict.variants == 6
    assert agreement.score == "cloze"
    for correlation in (agreement.spearman, agreement.kendall):
        assert correlation.value == pytest.approx(1)
        assert correlation.interval.low == pytest.approx(1)
        assert correlation.interval.high == pytest.approx(1)
    assert verdict.broken == []


def test_scores_that_rise_with_cost_disagree_perfectly():
    (agreement,) = proxy_verdict([outcome(str(step), 0.1 * step, cloze=0.02 * step) for step in range(6)]).agreements
    assert agreement.spearman.value == pytest.approx(-1)
    assert agreement.kendall.value == pytest.approx(-1)


def test_the_interval_holds_the_correlation_and_narrows_with_more_variants():
    random = np.random.default_rng(0)
    widths = []
    for number in (8, 80):
        bits = random.normal(0, 1, number)
        outcomes = [outcome(str(i), bit, cloze=random.normal(-bit, 1)) for i, bit in enumerate(bits)]
        (agreement,) = proxy_verdict(outcomes, resamples=2000).agreements
        for correlation in (agreement.spearman, agreement.kendall):
            assert -1 <= correlation.interval.low < correlation.value < correlation.interval.high <= 1
        widths.append(agreement.spearman.interval.high - agreement.spearman.interval.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_fewer_than_three_variants_are_counted_and_not_ranked(number):
    verdict = proxy_verdict([outcome(str(step), step, cloze=-step) for step in range(number)])
    assert (verdict.variants, verdict.agreements) == (number, ())


def test_variants_that_all_score_the_same_are_not_ranked():
    (agreement,) = proxy_verdict([outcome(str(step), step, cloze=0.0) for step in range(4)]).agreements
    assert (agreement.spearman, agreement.kendall) == (None, None)


def test_a_variant_breaks_the_rule_where_it_is_dearer_and_better_or_cheaper_and_worse():
    verdict = proxy_verdict(
        [
            outcome("dearer and better", 0.1, cloze=0.05),
            outcome("cheaper and worse", -0.1, cloze=-0.05),
            outcome("dearer and worse", 0.1, cloze=-0.05),
            outcome("cheaper and better", -0.1, cloze=0.05),
        ]
    )
    assert [(broken.variant, broken.score) for broken in verdict.broken] == [
        ("dearer and better", "cloze"),
        ("cheaper and worse", "cloze"),
    ]


@pytest.mark.parametrize(("bits_p", "score_p"), [(0.2, 0.001), (0.001, 0.2), (0.001, 0.03)])
def test_noise_breaks_no_rule(bits_p, score_p):
    """With two scores, one has to be surer than 0.025 to count."""
    bits = difference(0.1, bits_p)
    verdict = proxy_verdict([outcome("variant", bits, cloze=difference(0.05, score_p), brackets=difference(-0.05))])
    assert verdict.broken == []
