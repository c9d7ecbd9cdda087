"""Leaving runs out and redrawing residuals."""

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.laws import (
    DownstreamErrorLaw,
    OverTrainingLaw,
    Run,
    Runs,
    leave_one_out,
    relative_error,
    residual_bootstrap,
)

LAW = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136)


def runs_with_noise(sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, 12)
    points = [(size, m) for size in (10_000_000, 50_000_000, 200_000_000, 800_000_000) for m in (20, 80, 320)]
    return Runs(
        Run(params=n, tokens=n * m, loss=float(LAW.predict(params=n, multiplier=m)) + e)
        for (n, m), e in zip(points, noise, strict=True)
    )


def test_relative_error_is_of_the_measured_value():
    assert relative_error([1.1, 3.0], [1.0, 4.0]) == pytest.approx([0.1, 0.25])


def test_noise_free_runs_are_predicted_from_the_others():
    assert leave_one_out(OverTrainingLaw, runs_with_noise(0)).max() < 1e-7


def test_a_left_out_run_is_not_used():
    runs = list(runs_with_noise(0))
    spoilt = Run(params=runs[4].params, tokens=runs[4].tokens, loss=runs[4].loss * 1.5)
    errors = leave_one_out(OverTrainingLaw, Runs([*runs[:4], spoilt, *runs[5:]]))
    assert errors[4] == pytest.approx(1 / 3, rel=1e-6)  # of 1.5 times the true loss, which the others predict


def test_a_run_that_the_law_cannot_do_without_has_no_error():
    runs = runs_with_noise(0.01)
    at_20 = runs.where(lambda run: run.multiplier == 20)
    errors = leave_one_out(OverTrainingLaw, Runs([*at_20, runs[2]]))
    assert np.isnan(errors).tolist() == [False, False, False, False, True]


def test_the_bootstrap_repeats_with_its_seed_and_stands_still_without_noise():
    noisy = runs_with_noise(0.02)
    assert residual_bootstrap(OverTrainingLaw, noisy, 5, seed=1) == residual_bootstrap(
        OverTrainingLaw, noisy, 5, seed=1
    )
    assert residual_bootstrap(OverTrainingLaw, noisy, 5, seed=1) != residual_bootstrap(
        OverTrainingLaw, noisy, 5, seed=2
    )
    for law in residual_bootstrap(OverTrainingLaw, runs_with_noise(0), 5):
        assert law.eta == pytest.approx(LAW.eta, rel=1e-5)


def test_the_bootstrap_spreads_as_the_noise_does():
    spread = [
        np.std([law.predict(params=7e9, multiplier=20) for law in residual_bootstrap(OverTrainingLaw, runs, 60)])
        for runs in (runs_with_noise(0.002), runs_with_noise(0.004))
    ]
    assert spread[1] / spread[0] == pytest.approx(2, rel=0.1)


def test_as_many_runs_as_parameters_leave_nothing_to_redraw():
    points = [(1, 5, 0.8), (2, 4, 0.7), (3, 3, 0.5)]
    runs = Runs(Run(params=10, tokens=tokens, loss=loss, error=error) for tokens, loss, error in points)
    with pytest.raises(PerplabError, match="3 runs for 3 parameters"):
        residual_bootstrap(DownstreamErrorLaw, runs, 5)


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    truth = LAW.predict(params=7e9, multiplier=20)
    covered = 0
    for seed in range(60):
        laws = residual_bootstrap(OverTrainingLaw, runs_with_noise(0.01, seed), 60)
        low, high = np.percentile([law.predict(params=7e9, multiplier=20) for law in laws], [2.5, 97.5])
        covered += low <= truth <= high
    assert covered >= 52
