"""How sure a figure over documents is: the paired document bootstrap of the whole package.

Decisions:
- Documents are resampled, never tokens: the tokens of one document are not independent, and an interval that treats
  them so is too narrow by a factor that grows with the document.
- Every figure is a ratio of two sums over documents (nats over tokens, nats over bytes, right answers over items), so a
  resample is a vector of how often each document was drawn, and all figures of a table share one product with it.
- Intervals are percentile intervals with tails widened for few documents: the normal quantile gives way to Student's
  times sqrt(n / (n - 1)) (Hesterberg 2015, "expanded percentile"). The n of both is the effective number of documents,
  (sum of lengths)^2 / (sum of squared lengths): where one document holds half of the text, forty others do not make it
  forty-one. Beyond the outermost resample the distribution is continued as a normal one.
- This was chosen by measured coverage at nominal 95 %, on documents of log-normal length (sigma 1), each with a level
  of its own. For 10, 30, 60 and 200 documents: this 97.3, 95.8, 94.0, 94.4; plain percentiles 88.4, 92.6, 92.8, 94.0;
  BCa 85.5, 89.1, 90.6, 92.6; the studentised bootstrap 91.9, 93.3, 93.5, 94.4, which moreover has no finite interval
  where most documents agree (two checkpoints that differ on a few). What none of them mends: where long documents cost
  systematically less, and few long ones were seen, coverage stays near 92 %.
- The p-value is the level at which the interval begins to hold zero, so the two never disagree; it is not reported
  below what the number of resamples can tell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from perplab.errors import PerplabError

_CHUNK_DRAWS = 2**16
"""Draws that exist at a time: with their counts they stay in a core's cache."""
_FEWEST_RESAMPLES = 100
_FEWEST_EFFECTIVE = 2.0
"""Below one degree of freedom Student's quantiles are astronomical and say nothing."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Where a figure lies, at a level of confidence. `f"{interval:.3f}"` is `[0.025, 0.037]`.

    Args:
        low: lower end.
        high: upper end.
        level: confidence, such as 0.95.
    """

    low: float
    high: float
    level: float

    def __format__(self, spec: str) -> str:
        return f"[{format(self.low, spec)}, {format(self.high, spec)}]"


@dataclass(frozen=True)
class PairedDifference:
    """A figure of a second model minus the same figure of a first, over the same documents.

    Args:
        value: the difference.
        interval: where it lies.
        p_value: of no difference, two-sided.
    """

    value: float
    interval: Interval
    p_value: float


@dataclass(frozen=True, eq=False)
class ResampledRatio:
    """A ratio of sums over clusters, and what it was in each resample.

    Args:
        value: the ratio over all clusters.
        ordered: (resamples,) ascending.
        effective_clusters: equally long clusters that would tell as much.
    """

    value: float
    ordered: FloatArray
    effective_clusters: float

    def interval(self, level: float = 0.95) -> Interval:
        """Where the ratio lies.

        Raises:
            PerplabError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise PerplabError(f"an interval of level {level}", "give a level between 0 and 1, such as 0.95")
        score = float(student.ppf((1 - level) / 2, self._freedom)) / self._shrinkage
        mirrored = -self.ordered[::-1]
        return Interval(_at(score, self.ordered, self.value), -_at(score, mirrored, -self.value), level)

    @property
    def p_value(self) -> float:
        """Of a ratio of zero, two-sided: 1 minus the level at which the interval begins to hold zero."""
        score = min(_of_zero(self.ordered, self.value), _of_zero(-self.ordered[::-1], -self.value))
        tail = float(student.cdf(score * self._shrinkage, self._freedom))
        return min(1.0, max(2 * tail, 1 / (len(self.ordered) + 1)))

    def difference(self, level: float = 0.95) -> PairedDifference:
        """The ratio as a difference, where its numerators are differences."""
        return PairedDifference(self.value, self.interval(level), self.p_value)

    @property
    def _freedom(self) -> float:
        return self.effective_clusters - 1

    @property
    def _shrinkage(self) -> float:
        """How much narrower resamples spread than samples do."""
        return math.sqrt(1 - 1 / self.effective_clusters)


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    transform: Callable[[float], float] = float,
) -> Interval:
    """Interval of sum(numerators) / sum(denominators).

    Args:
        numerators: (clusters,) one number a document, such as its nats.
        denominators: (clusters,) what they are counted by, such as its tokens; ones make the figure a mean.
        resamples: how often the documents are drawn anew.
        level: confidence.
        seed: of the draws.
        transform: an increasing function for the ends, such as `math.exp` where the figure is a perplexity.

    Raises:
        PerplabError: as for `resampled_ratios`, or fewer than two documents have a denominator above zero.
    """
    interval = _resampled_ratio(numerators, denominators, resamples, seed).interval(level)
    return Interval(transform(interval.low), transform(interval.high), level)


def bootstrap_paired(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    denominators: npt.ArrayLike | None = None,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """(sum(second) - sum(first)) / sum(denominators), every draw of documents serving both.

    Args:
        first: (clusters,) one number a document, of the first model.
        second: (clusters,) the same of the second model.
        denominators: (clusters,); None for a difference of means.
        resamples: how often the documents are drawn anew.
        level: confidence.
        seed: of the draws.

    Raises:
        PerplabError: as for `bootstrap_ratio`, or the models have different numbers of documents.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:
        raise PerplabError(f"{len(one)} documents are paired with {len(other)}", "give both models the same documents")
    counted_by = np.ones(len(one)) if denominators is None else denominators
    return _resampled_ratio(other - one, counted_by, resamples, seed).difference(level)


def resampled_ratios(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> list[ResampledRatio | None]:
    """Several ratios over the same draws of the same documents.

    A resample in which nothing has a share in a ratio's denominator does not count for this ratio.

    Args:
        numerators: (clusters, ratios).
        denominators: (clusters, ratios), none below zero.
        resamples: how often the documents are drawn anew.
        seed: of the draws.

    Returns:
        One for each ratio; None where fewer than two documents have a denominator above zero.

    Raises:
        PerplabError: there are too few resamples, a number is not finite, or a denominator is below zero.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    _refuse_unusable(above, below, resamples)
    told = np.flatnonzero((below > 0).sum(axis=0) >= 2)
    sums = _resampled_sums(np.hstack((above[:, told], below[:, told])), resamples, seed)
    found: list[ResampledRatio | None] = [None] * above.shape[1]
    for column, ratio in enumerate(told):
        drawn_above, drawn_below = sums[:, column], sums[:, len(told) + column]
        some = drawn_below > 0
        total, lengths = below[:, ratio].sum(), below[:, ratio]
        found[ratio] = ResampledRatio(
            value=float(above[:, ratio].sum() / total),
            ordered=np.sort(drawn_above[some] / drawn_below[some]),
            effective_clusters=max(float(total**2 / (lengths @ lengths)), _FEWEST_EFFECTIVE),
        )
    return found


def _resampled_ratio(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike, resamples: int, seed: int
) -> ResampledRatio:
    columns = (np.asarray(values, dtype=np.float64)[:, None] for values in (numerators, denominators))
    (found,) = resampled_ratios(*columns, resamples=resamples, seed=seed)
    if found is None:
        raise PerplabError("no interval follows from fewer than two documents", "give at least two documents")
    return found


def _refuse_unusable(numerators: FloatArray, denominators: FloatArray, resamples: int) -> None:
    if resamples < _FEWEST_RESAMPLES:
        raise PerplabError(f"{resamples} bootstrap resamples tell nothing", f"give {_FEWEST_RESAMPLES} or more")
    if numerators.shape != denominators.shape:
        raise PerplabError(
            f"{len(numerators)} numerators stand over {len(denominators)} denominators", "give one of each a document"
        )
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise PerplabError("a document's figure is not finite", "score the documents again")
    if (denominators < 0).any():
        raise PerplabError("a document's denominator is below zero", "give counts, such as tokens or bytes")


def _resampled_sums(columns: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Sums of `columns` (clusters, k) over each draw of as many clusters, (resamples, k)."""
    clusters = len(columns)
    random = np.random.Generator(np.random.SFC64(seed))
    sums = np.empty((resamples, columns.shape[1]))
    chunk = max(1, _CHUNK_DRAWS // clusters)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = random.integers(0, clusters, size=(rows, clusters))
        drawn += np.arange(0, rows * clusters, clusters)[:, None]  # so that one count serves all rows
        times = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        sums[start : start + rows] = times.astype(np.float64) @ columns
    return sums


def _at(score: float, ordered: FloatArray, value: float) -> float:
    """Where the resamples have this normal score, which is below zero."""
    rank = math.floor(norm.cdf(score) * (len(ordered) + 1))
    if rank >= 1:
        return float(ordered[rank - 1])
    return float(value - (value - ordered[0]) * score / _outermost(ordered))


def _of_zero(ordered: FloatArray, value: float) -> float:
    """Normal score of zero among the resamples: the inverse of `_at`."""
    not_above = int(np.searchsorted(ordered, 0.0, side="right"))
    if not_above:
        return float(norm.ppf((min(not_above, len(ordered)) + 1) / (len(ordered) + 1)))
    spread = value - ordered[0]
    return _outermost(ordered) * value / spread if spread > 0 else -math.inf


def _outermost(ordered: FloatArray) -> float:
    """Normal score of the lowest resample."""
    return float(norm.ppf(1 / (len(ordered) + 1)))
