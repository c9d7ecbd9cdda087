"""What a law has to beat before a small error of prediction means anything.

- The last value: whatever the run with the most compute reached, carried forward.
- For a loss, the power law in compute of the runs that share one multiplier.
- For an error over tasks, the straight line over the loss.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from perplab.laws.law import Floats, Law
from perplab.laws.points import positive_columns, require_points
from perplab.laws.runs import Runs
from perplab.laws.scaling import PowerLaw

LAST_VALUE, POWER_LAW, STRAIGHT_LINE = "last value", "power law of one multiplier", "straight line"


@dataclass(frozen=True, kw_only=True)
class StraightLine(Law):
    """`Err(L) = intercept + slope L`, the simplest way from loss to error."""

    intercept: float
    slope: float

    kind: ClassVar[str] = "straight-line"
    inputs: ClassVar[tuple[str, ...]] = ("loss",)
    target: ClassVar[str] = "error"

    @classmethod
    def fit(cls, loss: npt.ArrayLike, error: npt.ArrayLike) -> Self:
        """Fit by least squares.

        Args:
            loss: (runs,), nats per token.
            error: (runs,), from 0 to 1.

        Raises:
            PerplabError: a value is not positive and finite, or fewer than two losses differ.
        """
        losses, errors = positive_columns(loss=loss, error=error)
        require_points(2, cls.kind, losses)
        slope, intercept = map(float, np.polyfit(losses, errors, 1))
        return cls(intercept=intercept, slope=slope)

    def predict(self, loss: npt.ArrayLike) -> Floats:
        """Error at a loss in nats per token."""
        return self.intercept + self.slope * np.asarray(loss, dtype=np.float64)


def loss_baselines(fitted: Runs, others: Runs) -> dict[str, Floats]:
    """Losses of `others` as the baselines predict them from `fitted`, by the baseline's name, shape (others,).

    The power law is of the multiplier with the most runs, and among those of the most compute; it is left out where no
    three of the fitted runs share a multiplier.
    """
    predictions = {LAST_VALUE: _last_value(fitted, fitted.loss, others)}
    alike = max(fitted.by_multiplier().values(), key=lambda runs: (len(runs), runs.compute.sum()))
    if len(alike) >= 3:
        power_law = PowerLaw.fit(alike.params, alike.tokens, alike.loss)
        predictions[POWER_LAW] = power_law.predict(params=others.params, tokens=others.tokens)
    return predictions


def error_baselines(fitted: Runs, others: Runs, loss: npt.ArrayLike) -> dict[str, Floats]:
    """Errors of `others`, whose losses are known or predicted, as the baselines predict them from `fitted`."""
    return {
        LAST_VALUE: _last_value(fitted, fitted.error, others),
        STRAIGHT_LINE: StraightLine.fit(fitted.loss, fitted.error).predict(loss),
    }


def _last_value(fitted: Runs, values: Floats, others: Runs) -> Floats:
    return np.full(len(others), values[np.argmax(fitted.compute)])
