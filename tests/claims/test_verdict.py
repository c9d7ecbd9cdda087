"""The verdict against scipy, its limits, and how often it is wrong where nothing is there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from perplab.claims import Claim, judge
from perplab.errors import PerplabError

LOWER = Claim(name="c", statement="s", metric="m", baseline="b")
RATIO = Claim(name="c", statement="s", metric="m", baseline="b", effect="ratio")


def figures(metric, baseline):
    return [{"m": m, "b": b} for m, b in zip(metric, baseline, strict=True)]


def test_the_interval_is_the_paired_t_interval():
    metric, baseline = [1.0, 1.3, 0.9, 1.1], [1.5, 1.6, 1.4, 1.5]
    expected = stats.ttest_rel(metric, baseline).confidence_interval(0.95)
    verdict = judge(LOWER, figures(metric, baseline))
    assert verdict.interval == pytest.approx((expected.low, expected.high))
    assert verdict.effect == pytest.approx(np.subtract(metric, baseline).mean())
    assert (verdict.metric, verdict.baseline) == (np.mean(metric), np.mean(baseline))
    assert verdict.words == "holds"


def test_a_ratio_is_judged_on_logarithms():
    metric, baseline = np.array([1.0, 1.3, 0.9]), np.array([1.5, 1.6, 1.4])
    expected = stats.ttest_rel(np.log(metric), np.log(baseline)).confidence_interval(0.95)
    verdict = judge(RATIO, figures(metric, baseline))
    assert verdict.interval == pytest.approx(np.exp([expected.low, expected.high]))
    assert verdict.effect == pytest.approx(stats.gmean(metric / baseline))
    with pytest.raises(PerplabError, match="zero or below"):
        judge(RATIO, figures([1.0, -1.0], [1.0, 1.0]))


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=6))
def test_turning_the_claim_around_turns_the_verdict_around(pairs):
    metric, baseline = zip(*pairs, strict=True)
    lower, higher = (
        judge(Claim(name="c", statement="s", metric="m", baseline="b", better=better), figures(metric, baseline))
        for better in ("lower", "higher")
    )
    assert "does not show at this scale" in (lower.words, higher.words)
    if lower.effect != 0:
        assert {lower.words, higher.words} != {"does not show at this scale"}
    assert lower.interval == higher.interval


@pytest.mark.parametrize(
    ("metric", "baseline", "words"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.3], "holds"),
        ([1.0, 1.9, 1.2], [2.0, 1.8, 2.3], "holds in direction"),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.3], "does not show at this scale"),
        ([1.0], [2.0], "holds in direction"),
        ([2.0], [1.0], "does not show at this scale"),
    ],
)
def test_the_words_follow_interval_and_direction(metric, baseline, words):
    assert judge(LOWER, figures(metric, baseline)).words == words


def test_a_threshold_has_to_be_met_by_the_mean():
    paired = figures([1.0, 1.1, 1.2], [2.0, 2.1, 2.3])
    for threshold, words in ((-1.0, "holds"), (-1.1, "holds in direction")):
        claim = Claim(name="c", statement="s", metric="m", baseline="b", threshold=threshold)
        assert judge(claim, paired).words == words
    for threshold, words in ((0.6, "holds"), (0.4, "holds in direction")):
        claim = Claim(name="c", statement="s", metric="m", baseline="b", effect="ratio", threshold=threshold)
        assert judge(claim, paired).words == words


def test_a_value_has_to_exclude_its_threshold():
    claim = Claim(name="c", statement="s", metric="m", effect="value", better="higher", threshold=0.8)
    for values, words in (
        ([0.9, 0.91, 0.92], "holds"),
        ([0.7, 0.95, 0.9], "holds in direction"),
        ([0.7, 0.71, 0.72], "does not show at this scale"),
    ):
        assert judge(claim, [{"m": value} for value in values]).words == words


def test_what_depends_on_no_seed_has_no_interval_and_says_so():
    same = figures([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    for verdict in (judge(LOWER, same), judge(LOWER, same[:1], seeded=False)):
        assert verdict.deterministic
        assert verdict.interval is None
        assert verdict.words == "holds"
    assert not judge(LOWER, same[:1]).deterministic


def test_a_published_figure_comes_out_within_its_tolerance_or_not():
    claim = Claim(name="c", statement="s", metric="m", effect="value", paper_value=0.73, tolerance=0.01)
    for values, seeded, words in (
        ([0.732], False, "holds"),
        ([0.75], False, "does not show at this scale"),
        ([0.731, 0.732, 0.7315], True, "holds"),
        ([0.70, 0.76, 0.73], True, "holds in direction"),
        ([0.732], True, "holds in direction"),
    ):
        assert judge(claim, [{"m": value} for value in values], seeded=seeded).words == words


def test_missing_figures_are_not_measured():
    assert judge(LOWER, [{"m": 1.0}]).words == "not measured"
    assert judge(LOWER, []).words == "not measured"


def test_where_there_is_no_effect_one_claim_in_forty_holds():
    draw = np.random.default_rng(0)
    verdicts = [judge(LOWER, figures(draw.normal(5, 1, 3), draw.normal(5, 1, 3))).words for _ in range(4000)]
    assert verdicts.count("holds") / 4000 == pytest.approx(0.025, abs=0.0075)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"effect": "value"}, "threshold or a tolerance"),
        ({"effect": "ratio"}, "needs a baseline"),
        ({"baseline": "b", "tolerance": 0.1}, "needs the paper's figure"),
    ],
)
def test_a_claim_that_cannot_fail_is_refused(parts, complaint):
    with pytest.raises(ValueError, match=complaint):
        Claim(name="c", statement="s", metric="m", **parts)
