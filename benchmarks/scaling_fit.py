"""Fitting a law with 1,000 bootstrap resamples: all at once against one after another.

The over-training law is fitted to 12 noisy runs and again to 1,000 redrawings of its residuals. One side is
`residual_bootstrap`, which projects all targets in step; the other fits each redrawing as a single law is fitted (fewer
of them, scaled up). Both find the same laws, which is checked first. Goal: under 2 s.
"""

import warnings
from typing import Any

import numpy as np

from measuring import interleaved
from perplab.laws import OverTrainingLaw, Run, Runs, residual_bootstrap

RESAMPLES = 1000
TRUTH = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136)
NOISES = {"E inside": (1.8, 0.02), "E at 0 in many": (0.05, 0.03)}


def measure(quick: bool) -> list[dict[str, Any]]:
    resamples, alone, repetitions = (50, 5, 1) if quick else (RESAMPLES, 50, 3)
    return [compare(name, *noise, resamples, alone, repetitions) for name, noise in NOISES.items()]


def compare(
    name: str, irreducible: float, sigma: float, resamples: int, alone: int, repetitions: int
) -> dict[str, Any]:
    runs = noisy_runs(irreducible, sigma)
    columns = {"params": runs.params, "tokens": runs.tokens}
    noise = np.random.default_rng(1).normal(0, sigma, (alone, len(runs)))
    targets = runs.loss + noise

    def one_after_another() -> list[OverTrainingLaw]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [OverTrainingLaw.fit(**columns, loss=target) for target in targets]

    together = OverTrainingLaw.fit_each(targets, **columns)
    np.testing.assert_allclose([law.eta for law in together], [law.eta for law in one_after_another()], rtol=1e-6)
    sides = {
        "together": lambda: residual_bootstrap(OverTrainingLaw, runs, resamples),
        "alone": one_after_another,
    }
    seconds = interleaved(sides, repetitions, warm_up=1)
    plain = seconds["alone"].median * resamples / alone
    return {
        "runs": f"12, {name}",
        "resamples": resamples,
        "perplab, s": seconds["together"].median,
        "one after another, s": plain,
        "ratio": plain / seconds["together"].median,
    }


def noisy_runs(irreducible: float, sigma: float) -> Runs:
    law = OverTrainingLaw(irreducible=irreducible, a=TRUTH.a, b=TRUTH.b, eta=TRUTH.eta)
    points = [(size, m) for size in (10_000_000, 50_000_000, 200_000_000, 800_000_000) for m in (20, 80, 320)]
    noise = np.random.default_rng(0).normal(0, sigma, len(points))
    return Runs(
        Run(params=n, tokens=n * m, loss=float(law.predict(params=n, multiplier=m)) + e)
        for (n, m), e in zip(points, noise, strict=True)
    )
