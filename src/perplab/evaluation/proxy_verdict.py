"""Whether perplexity may stand for task scores: over variants of one model, how well it ranked them, and where it lied.

Decisions:
- A variant is a point: how much dearer it finds the text than its base, and how much better it does at tasks than its
  base. Correlations are signed so that 1 says: the cheaper the text, the better the scores.
- Rank correlations of variants drawn with repetition are quadratic forms in how often each was drawn, so an interval
  costs two matrix products. It is a percentile interval over variants, and wide for few, as it must be.
- A variant breaks the rule where cost and score both moved beyond noise and in the direction the rule forbids. Each
  score is judged at the level divided by the number of scores, since any of them could break it by chance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perplab.scoring.bootstrap import FloatArray, Interval, PairedDifference

FEWEST_VARIANTS = 3
"""Two variants can only be in the right order or the wrong one."""


@dataclass(frozen=True)
class VariantOutcome:
    """A variant against its base.

    Args:
        name: of the variant.
        bits_per_byte: what it pays more for the text.
        scores: how much better it does, by task.
    """

    name: str
    bits_per_byte: PairedDifference
    scores: Mapping[str, PairedDifference]


@dataclass(frozen=True)
class Correlation:
    """A rank correlation over variants.

    Args:
        value: from -1 to 1.
        interval: where it lies.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class RankAgreement:
    """How well cost ranked the variants by one score.

    Args:
        score: name of the task.
        spearman: rho; None where all variants cost or score the same, as for `kendall`.
        kendall: tau-b.
    """

    score: str
    spearman: Correlation | None
    kendall: Correlation | None


@dataclass(frozen=True)
class BrokenRule:
    """A variant that got dearer and better, or cheaper and worse.

    Args:
        variant: its name.
        score: name of the task.
        bits_per_byte: what it pays more for the text.
        score_change: how much better it does.
    """

    variant: str
    score: str
    bits_per_byte: PairedDifference
    score_change: PairedDifference


@dataclass(frozen=True)
class ProxyVerdict:
    """Whether perplexity stood for task scores.

    Args:
        variants: how many were compared.
        agreements: one a score; empty for fewer than `FEWEST_VARIANTS` variants.
        broken: the exceptions beyond noise.
    """

    variants: int
    agreements: Sequence[RankAgreement]
    broken: Sequence[BrokenRule]


def proxy_verdict(
    outcomes: Sequence[VariantOutcome], *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> ProxyVerdict:
    """Judge variants of one base, measured on one text and one set of tasks.

    Args:
        outcomes: of all variants, each with the same scores.
        resamples: bootstrap resamples of variants.
        level: of the intervals; 1 minus the level is what counts as noise.
        seed: of the resampling.
    """
    broken = [
        BrokenRule(outcome.name, name, outcome.bits_per_byte, change)
        for outcome in outcomes
        for name, change in outcome.scores.items()
        if outcome.bits_per_byte.value * change.value > 0
        and outcome.bits_per_byte.p_value <= 1 - level
        and change.p_value <= (1 - level) / len(outcome.scores)
    ]
    if len(outcomes) < FEWEST_VARIANTS:
        return ProxyVerdict(len(outcomes), (), broken)
    drawn = np.random.default_rng(seed).integers(0, len(outcomes), (resamples, len(outcomes)))
    times = (drawn[:, :, None] == np.arange(len(outcomes))).sum(axis=1).astype(np.float64)
    cheapness = -np.array([outcome.bits_per_byte.value for outcome in outcomes])
    agreements = [
        _agreement(name, cheapness, np.array([outcome.scores[name].value for outcome in outcomes]), times, level)
        for name in outcomes[0].scores
    ]
    return ProxyVerdict(len(outcomes), agreements, broken)


def rank_correlations(first: FloatArray, second: FloatArray, times: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Spearman's rho and Kendall's tau-b of pairs that stand in a sample several times.

    Args:
        first: (pairs,).
        second: (pairs,).
        times: (samples, pairs), how often each pair is in each sample.

    Returns:
        (samples,) both; NaN where one side is all tied.
    """
    signs, other_signs = (np.sign(values[:, None] - values[None, :]) for values in (first, second))
    # A midrank is half of the signs against all others, up to a constant; and those sums have mean zero.
    ranks, other_ranks = times @ signs.T, times @ other_signs.T

    def over_pairs(products: FloatArray) -> FloatArray:
        total: FloatArray = ((times @ products) * times).sum(axis=1)
        return total

    with np.errstate(invalid="ignore"):
        spearman = (times * ranks * other_ranks).sum(axis=1) / np.sqrt(
            (times * ranks**2).sum(axis=1) * (times * other_ranks**2).sum(axis=1)
        )
        kendall = over_pairs(signs * other_signs) / np.sqrt(over_pairs(signs**2) * over_pairs(other_signs**2))
    return spearman, kendall


def _agreement(name: str, cheapness: FloatArray, score: FloatArray, times: FloatArray, level: float) -> RankAgreement:
    spearman, kendall = (
        _correlation(float(whole[0]), drawn[np.isfinite(drawn)], level)
        for whole, drawn in zip(
            rank_correlations(cheapness, score, np.ones((1, len(score)))),
            rank_correlations(cheapness, score, times),
            strict=True,
        )
    )
    return RankAgreement(name, spearman, kendall)


def _correlation(value: float, drawn: FloatArray, level: float) -> Correlation | None:
    if not math.isfinite(value):
        return None
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)).tolist()
    return Correlation(value, Interval(low, high, level))
