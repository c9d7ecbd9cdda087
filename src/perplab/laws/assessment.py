"""A law together with what says how far to trust it: a fit that passes through its points proves nothing by itself.

Intervals come from the residual bootstrap; each run is predicted from the others; and runs that took no part in the fit
are predicted by the law and, beside it, by the baselines that a useful law has to beat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perplab.laws.baselines import error_baselines, loss_baselines
from perplab.laws.law import Floats, Law
from perplab.laws.resampling import leave_one_out, predict_runs, relative_error, residual_bootstrap
from perplab.laws.runs import Run, Runs

LEVEL = 0.95
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run that was not fitted.

    Attributes:
        run: the run.
        measured: its loss or error.
        predicted: what the law says.
        interval: of the prediction, at `LEVEL`; None where residuals were not redrawn.
        baselines: what each baseline says, by its name.
    """

    run: Run
    measured: float
    predicted: float
    interval: Range | None
    baselines: Mapping[str, float]

    @property
    def relative_error(self) -> float:
        """`|predicted - measured| / measured`."""
        return float(relative_error(self.predicted, self.measured))

    @property
    def baseline_errors(self) -> dict[str, float]:
        """The same for each baseline."""
        return {name: float(relative_error(value, self.measured)) for name, value in self.baselines.items()}


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A fitted law and its trials.

    Attributes:
        law: the law.
        intervals: of its parameters, at `LEVEL`; empty where residuals were not redrawn.
        left_out: (fitted runs,), relative error on each run of the law fitted to the others, NaN where it needs it.
        held_out: the runs that were not fitted.
    """

    law: Law
    intervals: Mapping[str, Range]
    left_out: Floats
    held_out: tuple[Prediction, ...]

    @property
    def mean_errors(self) -> dict[str, float]:
        """Mean relative error on the held-out runs, by law or baseline; empty without such runs."""
        if not self.held_out:
            return {}
        columns = {name: [row.baseline_errors[name] for row in self.held_out] for name in self.held_out[0].baselines}
        own = [row.relative_error for row in self.held_out]
        return {name: float(np.mean(errors)) for name, errors in ({f"{self.law.kind} law": own} | columns).items()}


def assess(
    kind: type[Law], fitted: Runs, held_out: Runs, *, resamples: int = 200, seed: int = 0, **options: Any
) -> Assessment:
    """Fit a law and try it.

    Args:
        kind: the kind of law.
        fitted: the runs it is fitted on.
        held_out: runs to predict; there may be none.
        resamples: redrawings of the residuals for the intervals, 0 for none. None are possible where there are no more
            runs than parameters.
        seed: of the redrawings.
        options: of the law's `fit`.

    Raises:
        PerplabError: the law cannot be fitted to these runs.
    """
    columns = {name: getattr(fitted, name) for name in (*kind.inputs, kind.target)}
    law: Law = kind.fit(**columns, **options)
    possible = resamples > 0 and len(fitted) > len(kind.parameters())
    redrawn = residual_bootstrap(kind, fitted, resamples, seed, **options) if possible else []
    return Assessment(
        law=law,
        intervals={name: _interval([getattr(one, name) for one in redrawn]) for name in kind.parameters() if redrawn},
        left_out=leave_one_out(kind, fitted, **options),
        held_out=_predictions(law, redrawn, fitted, held_out) if len(held_out) else (),
    )


def with_predicted_loss(law: Law, runs: Runs) -> Runs:
    """The runs with the loss that a law predicts of them, from which an error law has to predict what was not run."""
    return Runs(replace(run, loss=float(loss)) for run, loss in zip(runs, predict_runs(law, runs), strict=True))


def _predictions(law: Law, redrawn: list[Law], fitted: Runs, runs: Runs) -> tuple[Prediction, ...]:
    measured, predicted = getattr(runs, law.target), predict_runs(law, runs)
    baselines = loss_baselines(fitted, runs) if law.target == "loss" else error_baselines(fitted, runs, runs.loss)
    resampled = np.array([predict_runs(one, runs) for one in redrawn])
    return tuple(
        Prediction(
            run=run,
            measured=float(measured[row]),
            predicted=float(predicted[row]),
            interval=_interval(resampled[:, row]) if redrawn else None,
            baselines={name: float(values[row]) for name, values in baselines.items()},
        )
        for row, run in enumerate(runs)
    )


def _interval(values: Floats | list[float]) -> Range:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
