"""From loss to task error: published figures, the laws it contains, and the chain."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from perplab.errors import PerplabError
from perplab.laws import DownstreamErrorLaw, LawWarning, OverTrainingLaw, chain, relative_error

PUBLISHED = {
    "C4": (0.84974, 2.07891, 0.75612),
    "RedPajama": (0.85699, 2.20649, 0.71459),
    "RefinedWeb": (0.86528, 2.21481, 0.70705),
}
PUBLISHED_ERRORS = {"C4": (9.58, 0.14), "RedPajama": (3.6365, 0.0464), "RefinedWeb": (5.62, 2.94)}
LOSSES = np.linspace(2.2, 5.5, 6)


def numbers(law):
    return np.array([law.eps, law.k, law.gamma])


@pytest.mark.parametrize("corpus", PUBLISHED)
def test_the_published_fit_and_errors_come_out(published, corpus):
    small, above_chance, targets = published(corpus)
    loss_law = OverTrainingLaw.fit(small.params, small.tokens, small.loss)
    error_law = DownstreamErrorLaw.fit(above_chance.loss, above_chance.error)
    assert numbers(error_law) == pytest.approx(PUBLISHED[corpus], rel=1e-4)
    predicted = chain(loss_law, error_law)(params=targets.params, tokens=targets.tokens)
    assert 100 * relative_error(predicted, targets.error) == pytest.approx(PUBLISHED_ERRORS[corpus], abs=0.01)


def test_without_the_run_above_chance_the_error_is_the_published_one(published):
    small, _, targets = published("RedPajama")
    loss_law = OverTrainingLaw.fit(small.params, small.tokens, small.loss)
    error_law = DownstreamErrorLaw.fit(small.loss, small.error)
    predicted = chain(loss_law, error_law)(params=targets.params, tokens=targets.tokens)
    assert 100 * relative_error(predicted, targets.error)[1] == pytest.approx(10.64, abs=0.01)


def test_projection_and_scipy_curve_fit_agree(published):
    loss, error = published("C4").error_law.loss, published("C4").error_law.error
    law = DownstreamErrorLaw.fit(loss, error)
    found, _ = optimize.curve_fit(lambda x, eps, k, gamma: eps - k * np.exp(-gamma * x), loss, error, maxfev=10_000)
    assert numbers(law) == pytest.approx(found, rel=1e-5)


laws = st.builds(DownstreamErrorLaw, eps=st.floats(0.6, 1), k=st.floats(0.5, 2.5), gamma=st.floats(0.3, 2))


@given(law=laws)
def test_noise_free_errors_give_the_law_back(law):
    errors = law.predict(LOSSES)
    if errors.min() > 0.01 and np.ptp(errors) > 0.05:
        assert numbers(DownstreamErrorLaw.fit(LOSSES, errors)) == pytest.approx(numbers(law), rel=1e-6)


@given(law=laws, loss=st.floats(0.5, 10))
def test_it_is_a_power_of_perplexity_and_rises_with_the_loss(law, loss):
    perplexity = np.exp(loss)
    assert law.predict(loss) == pytest.approx(law.eps - law.k * perplexity**-law.gamma, abs=1e-14)
    assert law.predict(loss + 0.1) > law.predict(loss)
    assert law.predict(loss) < law.eps


@given(length=st.integers(1, 20), loss=st.floats(0.5, 5))
def test_exact_match_of_n_tokens_is_a_special_case(length, loss):
    law = DownstreamErrorLaw(eps=1.0, k=1.0, gamma=float(length))
    assert law.predict(loss) == pytest.approx(1 - np.exp(loss) ** -length, abs=1e-14)


def test_runs_near_chance_are_a_warning():
    with pytest.warns(LawWarning, match=r"span only 0\.0"):
        DownstreamErrorLaw.fit([5.0, 4.5, 4.0, 3.5], [0.75, 0.745, 0.739, 0.731])


def test_bad_errors_are_refused():
    with pytest.raises(PerplabError, match="error is 70"):
        DownstreamErrorLaw.fit([5, 4, 3], [70, 60, 40])
    with pytest.raises(PerplabError, match="2 distinct points for the 3 parameters"):
        DownstreamErrorLaw.fit([5, 4, 4], [0.7, 0.6, 0.61])
