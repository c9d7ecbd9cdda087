"""A trace with what is known about it: from random draws to a value, a standard error and an interval.

- Draws come in groups that were drawn apart, such as the rows of a text: the trace is the sum over groups, and so is
  its variance. Each group's variance is taken from its own draws, so the text's variety does not pass for uncertainty.
- The interval is Student's with the degrees of freedom of Welch and Satterthwaite. It is about the draws alone, for
  the text as given: another text has another trace.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import Interval

Floats = npt.NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of a curvature matrix of the mean loss.

    Attributes:
        value: the trace, in nats per squared unit of parameter.
        standard_error: of the value over draws; 0 where nothing is drawn, None where one draw tells no spread.
        interval: where the trace lies, at 95 %; None where the standard error is.
        by_module: the part of each module's own parameters, by its path; the parts sum to the value.
        passes: what it cost, in forward and backward passes over the whole text.
    """

    value: float
    standard_error: float | None
    interval: Interval | None
    by_module: Mapping[str, float]
    passes: float


def estimate(names: Sequence[str], groups: Iterable[Floats], passes: float, *, exact: bool = False) -> TraceEstimate:
    """The trace from draws.

    Args:
        names: of the parameters.
        groups: for each group its draws of the contribution of each parameter, (draws, parameters).
        passes: what the draws cost.
        exact: whether nothing was drawn at random.

    Raises:
        PerplabError: a contribution is not finite.
    """
    by_parameter = np.zeros(len(names))
    variances: list[float] = []
    draws = 0
    for contributions in groups:
        by_parameter += contributions.mean(axis=0)
        draws = len(contributions)
        variances.append(float(contributions.sum(axis=1).var(ddof=1)) / draws if draws > 1 else 0.0)
    value = float(by_parameter.sum())
    if not math.isfinite(value):
        raise PerplabError("the curvature of the loss is not finite", "check the model's weights")
    error = 0.0 if exact else _standard_error(variances, draws)
    interval = None if error is None else _interval(value, error, np.array(variances), draws)
    return TraceEstimate(value, error, interval, _by_module(names, by_parameter), passes)


def _standard_error(variances: Sequence[float], draws: int) -> float | None:
    return math.sqrt(sum(variances)) if draws > 1 else None


def _interval(value: float, error: float, variances: Floats, draws: int) -> Interval:
    if error == 0:
        return Interval(value, value, LEVEL)
    freedom = variances.sum() ** 2 / (variances @ variances) * (draws - 1)
    reach = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    return Interval(value - reach, value + reach, LEVEL)


def _by_module(names: Sequence[str], by_parameter: Floats) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, part in zip(names, by_parameter.tolist(), strict=True):
        module = name.rpartition(".")[0] or name
        sums[module] = sums.get(module, 0.0) + part
    return sums
