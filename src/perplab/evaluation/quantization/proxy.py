"""Whether perplexity can stand in for a benchmark: how the two go together over compressed models.

Decisions:
- The logarithm of perplexity: a collapsed model's perplexity is a million, and would be the only point that counts.
- Part of a correlation over models of several sizes is size: large models are cheap and good. So the correlation within
  a size stands beside the pooled one, and the fit is asked to predict a model that it has not seen.
- Pearson's intervals are Fisher's; within groups one degree of freedom goes for each further group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import Interval

Floats = npt.NDArray[np.float64]

FEWEST_POINTS = 4
"""Below this, Fisher's interval does not exist."""


@dataclass(frozen=True)
class ProxyCorrelation:
    """How log perplexity and one metric go together.

    Attributes:
        points: compressed models.
        pearson: over all points.
        interval: of that; None for fewer than `FEWEST_POINTS` points.
        spearman: the same of ranks.
        within: Pearson's r after each group's means are taken away; None where nothing varies within groups.
        within_interval: of that; None where there are too few points.
        left_out_r2: 1 minus the squared error of predicting each group from a line through the others, over that of
            the mean of all points; None for one group. Below 0 the line is worse than the mean.
    """

    points: int
    pearson: float
    interval: Interval | None
    spearman: float
    within: float | None
    within_interval: Interval | None
    left_out_r2: float | None


def proxy_correlation(
    log_perplexity: npt.ArrayLike, metric: npt.ArrayLike, groups: Sequence[str], *, level: float = 0.95
) -> ProxyCorrelation | None:
    """Correlate log perplexity with a metric.

    Args:
        log_perplexity: (points,) nats.
        metric: (points,) the metric of the same models.
        groups: (points,) the model that each was made from.
        level: of the intervals.

    Returns:
        None where one of the two is the same everywhere, which nothing can go together with.

    Raises:
        PerplabError: the three differ in length, there are fewer than two points, or a value is not finite.
    """
    x, y = np.asarray(log_perplexity, dtype=float), np.asarray(metric, dtype=float)
    if not len(x) == len(y) == len(groups) or len(x) < 2:
        raise PerplabError(
            f"{len(x)} perplexities, {len(y)} values and {len(groups)} groups", "give one of each a model, at least two"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise PerplabError("a perplexity or a metric is not finite", "leave that model out")
    pearson, spearman = _pearson(x, y), _pearson(rankdata(x), rankdata(y))
    if pearson is None or spearman is None:
        return None
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    others = int(group.max())
    within = _pearson(_centred(x, group), _centred(y, group))
    return ProxyCorrelation(
        points=len(x),
        pearson=pearson,
        interval=_fisher(pearson, len(x), level),
        spearman=spearman,
        within=within,
        within_interval=None if within is None else _fisher(within, len(x) - others, level),
        left_out_r2=_left_out_r2(x, y, group) if others else None,
    )


def _pearson(x: Floats, y: Floats) -> float | None:
    one, other = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(one @ one) * float(other @ other))
    noise = 1e-12 * math.sqrt(max(float(x @ x) * float(y @ y), 1e-300))
    return max(-1.0, min(1.0, float(one @ other) / scale)) if scale > noise else None


def _fisher(correlation: float, points: int, level: float) -> Interval | None:
    if points < FEWEST_POINTS:
        return None
    if abs(correlation) == 1:
        return Interval(correlation, correlation, level)
    half = NormalDist().inv_cdf((1 + level) / 2) / math.sqrt(points - 3)
    middle = math.atanh(correlation)
    return Interval(math.tanh(middle - half), math.tanh(middle + half), level)


def _centred(values: Floats, group: npt.NDArray[np.intp]) -> Floats:
    means = np.bincount(group, values) / np.bincount(group)
    centred: Floats = values - means[group]
    return centred


def _left_out_r2(x: Floats, y: Floats, group: npt.NDArray[np.intp]) -> float | None:
    missed = 0.0
    for left_out in range(int(group.max()) + 1):
        seen, asked = group != left_out, group == left_out
        spread = float(np.var(x[seen]))
        if spread == 0:
            return None
        slope = float(np.cov(x[seen], y[seen], bias=True)[0, 1]) / spread
        predicted = y[seen].mean() + slope * (x[asked] - x[seen].mean())
        missed += float(((y[asked] - predicted) ** 2).sum())
    return 1 - missed / float(((y - y.mean()) ** 2).sum())
