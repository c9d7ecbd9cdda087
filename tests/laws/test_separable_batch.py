"""Many targets at once are fitted as each alone."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from perplab.errors import PerplabError
from perplab.laws import DownstreamErrorLaw, OverTrainingLaw, Run, Runs, residual_bootstrap
from perplab.laws.law import Law
from perplab.laws.separable_batch import fit_separable_each

POINTS = [(size, m) for size in (10_000_000, 50_000_000, 200_000_000, 800_000_000) for m in (20, 80, 320)]
PARAMS = np.array([float(size) for size, _ in POINTS])
TOKENS = np.array([float(size * m) for size, m in POINTS])


def noisy_losses(irreducible, sigma, laws, seed=0):
    law = OverTrainingLaw(irreducible=irreducible, a=212.0, b=367.0, eta=0.136)
    return law.predict(params=PARAMS, tokens=TOKENS) + np.random.default_rng(seed).normal(0, sigma, (laws, len(PARAMS)))


@pytest.mark.parametrize("irreducible", [1.8, 0.02])  # under 0.02 the noise pushes many fits to the bound 0
def test_the_batch_gives_the_laws_that_single_fits_give(irreducible):
    losses = noisy_losses(irreducible, 0.03, 40)
    together = OverTrainingLaw.fit_each(losses, params=PARAMS, tokens=TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [OverTrainingLaw.fit(PARAMS, TOKENS, loss) for loss in losses]
    assert (irreducible < 1) == any(law.irreducible == 0 for law in alone)
    for fast, plain in zip(together, alone, strict=True):
        assert fast.eta == pytest.approx(plain.eta, rel=1e-6)
        assert fast.irreducible == pytest.approx(plain.irreducible, rel=1e-5, abs=1e-6)
        assert fast.predict(params=7e9, multiplier=40) == pytest.approx(plain.predict(params=7e9, multiplier=40), 1e-7)
        assert fast.multipliers == plain.multipliers


def test_error_laws_are_fitted_together_as_alone():
    losses = np.array([5.2, 3.8, 3.4, 3.0, 4.5, 2.7])
    true = DownstreamErrorLaw(eps=0.85, k=2.1, gamma=0.75).predict(losses)
    errors = true + np.random.default_rng(0).normal(0, 0.01, (30, 6))
    together = DownstreamErrorLaw.fit_each(errors, loss=losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [DownstreamErrorLaw.fit(losses, error) for error in errors]
    for fast, plain in zip(together, alone, strict=True):
        assert fast.gamma == pytest.approx(plain.gamma, rel=1e-6)
        assert fast.predict(2.5) == pytest.approx(plain.predict(2.5), rel=1e-7)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_coefficients_are_those_of_a_constrained_solver(seed, columns):
    random = np.random.default_rng(seed)
    design = random.normal(size=(6, columns))
    targets = random.normal(size=(5, 6))
    _, found = fit_separable_each(
        lambda exponents: np.broadcast_to(design, (*exponents.shape[:-1], 6, columns)), targets, 0.1, 1
    )
    for target, coefficients in zip(targets, found, strict=True):
        assert coefficients.min() >= 0
        assert coefficients == pytest.approx(optimize.nnls(design, target)[0], abs=1e-9)


def test_noise_free_targets_give_the_law_back():
    (law,) = OverTrainingLaw.fit_each(noisy_losses(1.8, 0, 1), params=PARAMS, tokens=TOKENS)
    assert law.predict(params=7e9, multiplier=20) == pytest.approx(
        OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136).predict(params=7e9, multiplier=20), rel=1e-8
    )


def test_the_other_method_is_kept():
    losses = noisy_losses(1.8, 0.01, 2)
    by_lm = OverTrainingLaw.fit_each(losses, params=PARAMS, tokens=TOKENS, method="lm")
    assert by_lm == [OverTrainingLaw.fit(PARAMS, TOKENS, loss, method="lm") for loss in losses]


def test_a_loss_that_is_no_number_is_named():
    losses = noisy_losses(1.8, 0.01, 3)
    losses[1, 4] = np.inf
    with pytest.raises(PerplabError, match="loss is inf"):
        OverTrainingLaw.fit_each(losses, params=PARAMS, tokens=TOKENS)


def test_a_bootstrap_at_once_costs_far_less_than_one_law_after_another():
    runs = Runs(
        Run(params=int(n), tokens=int(d), loss=loss)
        for n, d, loss in zip(PARAMS, TOKENS, noisy_losses(1.8, 0.02, 1)[0], strict=True)
    )
    started = time.process_time()
    residual_bootstrap(OverTrainingLaw, runs, 400)
    together = time.process_time() - started
    losses = noisy_losses(1.8, 0.02, 40)
    started = time.process_time()
    Law.fit_each.__func__(OverTrainingLaw, losses, params=PARAMS, tokens=TOKENS)
    assert together < (time.process_time() - started) * 10 / 3
