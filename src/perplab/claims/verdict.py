"""What a claim's figures over seeds say.

- `holds`: the t-interval of the effect over seeds excludes what "no effect" would be, in the claimed direction, and the
  mean meets the claim's threshold where it has one.
- `holds in direction`: the mean goes the claimed way, and the interval or the threshold does not allow more.
- `does not show at this scale`: the mean does not go the claimed way.
- A claim that a figure comes out holds where the interval lies within its tolerance, and `in direction` where only the
  mean does.
- Where nothing depends on the seed there is one value and no interval: the value decides, and the verdict says that it
  is deterministic. One seed of something random has no interval either, and then nothing more than direction holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from perplab.claims.claim import Claim
from perplab.errors import PerplabError

LEVEL = 0.95
Words = Literal["holds", "holds in direction", "does not show at this scale", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, measured.

    Attributes:
        words: the verdict.
        metric: mean over seeds; None where it was not measured.
        baseline: mean over seeds; None where there is none.
        effect: mean effect over seeds; for a ratio the geometric mean.
        interval: of the effect, at `LEVEL`; None for one seed or a deterministic claim.
        deterministic: whether all seeds gave the same.
    """

    words: Words
    metric: float | None = None
    baseline: float | None = None
    effect: float | None = None
    interval: tuple[float, float] | None = None
    deterministic: bool = False


def judge(claim: Claim, figures: Sequence[Mapping[str, float]], *, seeded: bool = True) -> Verdict:
    """Judge a claim by the figures of each seed.

    Args:
        claim: the claim.
        figures: of each seed, by name.
        seeded: whether the seed changes anything.
    """
    needed = [name for name in (claim.metric, claim.baseline) if name is not None]
    if not figures or any(name not in one for one in figures for name in needed):
        return Verdict(words="not measured")
    metric = np.array([one[claim.metric] for one in figures])
    baseline = np.array([one[claim.baseline] for one in figures]) if claim.baseline else None
    effects = _effects(claim, metric, baseline)
    deterministic = not seeded or (len(effects) > 1 and bool(np.ptp(effects) == 0))
    interval = None if deterministic or len(effects) < 2 else _t_interval(effects)
    back = np.exp if claim.effect == "ratio" else float
    effect = float(back(effects.mean()))
    interval = interval and (float(back(interval[0])), float(back(interval[1])))
    return Verdict(
        words=_words(claim, effect, interval, deterministic),
        metric=float(metric.mean()),
        baseline=None if baseline is None else float(baseline.mean()),
        effect=effect,
        interval=interval,
        deterministic=deterministic,
    )


def _effects(
    claim: Claim, metric: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """One effect a seed; ratios as logarithms, in which twice and half are equally far from none."""
    if baseline is None or claim.effect == "value":
        return metric
    if claim.effect == "difference":
        return metric - baseline
    if not (np.all(metric > 0) and np.all(baseline > 0)):
        raise PerplabError(
            f"the ratio of {claim.metric} to {claim.baseline} has terms of zero or below", "claim a difference"
        )
    return np.log(metric / baseline)


def _t_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    half = special.stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _words(claim: Claim, effect: float, interval: tuple[float, float] | None, deterministic: bool) -> Words:
    if claim.tolerance is not None and claim.paper_value is not None:
        within = [abs(value - claim.paper_value) <= claim.tolerance for value in (effect, *(interval or ()))]
        if not within[0]:
            return "does not show at this scale"
        return "holds" if all(within) and (deterministic or interval) else "holds in direction"
    none = {"difference": 0.0, "ratio": 1.0}.get(claim.effect, claim.threshold)
    sign = -1 if claim.better == "lower" else 1
    nothing = sign * float(none if none is not None else 0.0)
    if not sign * effect > nothing:
        return "does not show at this scale"
    certain = deterministic or (interval is not None and min(sign * end for end in interval) > nothing)
    enough = claim.threshold is None or sign * effect >= sign * claim.threshold
    return "holds" if certain and enough else "holds in direction"
