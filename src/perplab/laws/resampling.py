"""How far a fitted law can be trusted: what it misses when a run is left out, and how it moves with the noise.

- The residual bootstrap keeps every run and redraws only the noise. Redrawing runs, as is usual elsewhere, breaks down
  here: five runs for four parameters leave most draws without a fit.
- Residuals of n runs and p parameters are too small by the square root of (n - p) / n, and are stretched accordingly.
"""

import warnings
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.laws.law import Floats, Law, LawWarning
from perplab.laws.runs import Runs

AnyLaw = TypeVar("AnyLaw", bound=Law)


def relative_error(predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Floats:
    """`|predicted - measured| / |measured|`, element by element."""
    truth = np.asarray(measured, dtype=np.float64)
    return np.abs(np.asarray(predicted, dtype=np.float64) - truth) / np.abs(truth)


def predict_runs(law: Law, runs: Runs) -> Floats:
    """What a law says of each run, shape (runs,)."""
    return np.asarray(law.predict(**_inputs(law, runs)))


def leave_one_out(law: type[Law], runs: Runs, **options: Any) -> Floats:
    """Relative error on each run of the law fitted to all others, shape (runs,).

    A run without which the law is not identifiable has NaN.

    Args:
        law: the kind of law.
        runs: what it is fitted on.
        options: of its `fit`.
    """
    errors = np.full(len(runs), np.nan)
    for left_out in range(len(runs)):
        others = Runs(run for row, run in enumerate(runs) if row != left_out)
        try:
            fitted = _fit(law, others, getattr(others, law.target), options)
        except PerplabError:
            continue
        alone = Runs([runs[left_out]])
        errors[left_out] = relative_error(predict_runs(fitted, alone), getattr(alone, law.target))[0]
    return errors


def residual_bootstrap(
    law: type[AnyLaw], runs: Runs, resamples: int = 1000, seed: int = 0, **options: Any
) -> list[AnyLaw]:
    """The law fitted again and again to its own predictions with redrawn residuals.

    Args:
        law: the kind of law.
        runs: what it is fitted on, more of them than the law has parameters.
        resamples: how many laws.
        seed: of the draws.
        options: of the law's `fit`.

    Raises:
        PerplabError: there are no more runs than parameters, so that the fit leaves no residual to draw from.
    """
    measured = getattr(runs, law.target)
    fitted = _fit(law, runs, measured, options)
    parameters = len(law.parameters())
    if len(runs) <= parameters:
        raise PerplabError(
            f"{len(runs)} runs for {parameters} parameters leave no residual to draw from", "measure more runs"
        )
    predicted = predict_runs(fitted, runs)
    residuals = (measured - predicted) * np.sqrt(len(runs) / (len(runs) - parameters))
    draws = np.random.default_rng(seed).choice(residuals - residuals.mean(), size=(resamples, len(runs)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LawWarning)
        return law.fit_each(predicted + draws, **_inputs(law, runs), **options)


def _fit(law: type[AnyLaw], runs: Runs, target: Floats, options: dict[str, Any]) -> AnyLaw:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LawWarning)
        fitted: AnyLaw = law.fit(**_inputs(law, runs), **{law.target: target}, **options)
    return fitted


def _inputs(law: Law | type[Law], runs: Runs) -> dict[str, Floats]:
    return {name: getattr(runs, name) for name in law.inputs}
