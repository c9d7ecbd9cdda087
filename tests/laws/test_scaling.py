"""The laws of the loss: published figures, closed forms, recovery of known parameters, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from perplab.errors import PerplabError
from perplab.laws import ChinchillaLaw, LawWarning, OverTrainingLaw, PowerLaw, read_law, relative_error
from perplab.laws.allocation import allocate

PUBLISHED = {
    "C4": (1.50826, 141.277, 189.516, 0.121236),
    "RedPajama": (1.83665, 212.236, 366.687, 0.136425),
    "RefinedWeb": (1.73446, 157.116, 246.207, 0.127197),
}
PUBLISHED_LOSS_ERRORS = {"C4": (1.50, 4.30), "RedPajama": (0.7103, 0.7320), "RefinedWeb": (0.01, 1.62)}
SMALL = {"params": [1e7, 8e7, 1.5e8, 4e8, 1e7], "tokens": [2e8, 1.6e9, 3e9, 8e9, 3.2e9]}

positive_laws = st.builds(
    OverTrainingLaw,
    irreducible=st.floats(0.1, 3),
    a=st.floats(50, 500),
    b=st.floats(50, 500),
    eta=st.floats(0.08, 0.3),
)


def numbers(law):
    return np.array([law.irreducible, law.a, law.b, law.eta])


@pytest.fixture(params=PUBLISHED)
def corpus(request):
    return request.param


@pytest.mark.parametrize("method", ["varpro", "lm"])
def test_the_published_fit_comes_out_of_the_five_published_runs(published, corpus, method):
    runs = published(corpus).loss_law
    law = OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss, method=method)
    assert numbers(law) == pytest.approx(PUBLISHED[corpus], rel=1e-4)
    assert law.multipliers == (20, 320)


def test_both_methods_find_the_same_optimum(published, corpus):
    runs = published(corpus).loss_law
    projected, levenberg = (
        OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss, method=method) for method in ("varpro", "lm")
    )
    assert numbers(projected) == pytest.approx(numbers(levenberg), rel=1e-5)


def test_the_fitted_runs_cost_what_the_paper_says(published, corpus):
    assert published(corpus).loss_law.compute.sum() == pytest.approx(2.41405e19, rel=1e-5)


def test_the_published_errors_of_predicted_losses_come_out(published, corpus):
    runs = published(corpus).loss_law
    law = OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss)
    targets = published(corpus).targets
    errors = 100 * relative_error(law.predict(params=targets.params, multiplier=targets.multiplier), targets.loss)
    assert errors == pytest.approx(PUBLISHED_LOSS_ERRORS[corpus], abs=0.01)


@settings(max_examples=25)
@given(law=positive_laws)
def test_noise_free_runs_give_the_law_back(law):
    loss = law.predict(**SMALL)
    assert numbers(OverTrainingLaw.fit(**SMALL, loss=loss)) == pytest.approx(numbers(law), rel=1e-6)


@settings(max_examples=10)
@given(law=positive_laws)
def test_levenberg_marquardt_gives_the_law_back_too(law):
    fitted = OverTrainingLaw.fit(**SMALL, loss=law.predict(**SMALL), method="lm")
    assert numbers(fitted) == pytest.approx(numbers(law), rel=1e-5)


def test_chinchilla_coefficients_with_equal_exponents_give_a_b_and_eta():
    chinchilla = ChinchillaLaw(irreducible=1.7, params_scale=250.0, alpha=0.3, tokens_scale=420.0, beta=0.3)
    law = OverTrainingLaw.fit(**SMALL, loss=chinchilla.predict(**SMALL))
    assert numbers(law) == pytest.approx([1.7, 250 * 6**0.15, 420 * 6**0.15, 0.15], rel=1e-6)
    back = ChinchillaLaw.of_over_training(law)
    assert list(back.numbers.values())[2:] == pytest.approx([250, 0.3, 420, 0.3], rel=1e-6)


@given(
    law=positive_laws,
    params=st.floats(1e6, 1e12),
    multiplier=st.floats(1, 1e4),
)
def test_two_of_the_four_quantities_say_the_same(law, params, multiplier):
    tokens = params * multiplier
    known = {"params": params, "tokens": tokens, "compute": 6 * params * tokens, "multiplier": multiplier}
    expected = law.irreducible + law.a / 6**law.eta * params ** (-2 * law.eta)
    expected += law.b / 6**law.eta * tokens ** (-2 * law.eta)
    for first in known:
        for second in known:
            if first < second:
                given_two = {name: known[name] for name in (first, second)}
                assert law.predict(**given_two) == pytest.approx(expected, rel=1e-12)


def test_multiplier_is_tokens_per_parameter():
    assert allocate(params=1e9, tokens=2e10).multiplier == 20
    assert allocate(params=1e9, multiplier=20).compute == 6 * 1e9 * 2e10


@given(law=positive_laws, multiplier=st.floats(1, 1e4))
def test_reducible_loss_falls_with_slope_eta_at_every_multiplier(law, multiplier):
    low, high = law.reducible(compute=np.array([1e18, 1e23]), multiplier=multiplier)
    assert np.log(high / low) / np.log(1e5) == pytest.approx(-law.eta, abs=1e-10)


@given(law=positive_laws, ratio=st.floats(1e-3, 1e3))
def test_the_offset_is_least_and_symmetric_around_the_optimal_multiplier(law, ratio):
    best = law.optimal_multiplier()
    assert law.offset(best) == pytest.approx(2 * np.sqrt(law.a * law.b), rel=1e-12)
    assert law.offset(best * ratio) == pytest.approx(law.offset(best / ratio), rel=1e-9)
    found = optimize.minimize_scalar(lambda log_m: law.offset(np.exp(log_m)), bounds=(-30, 30), method="bounded")
    assert np.exp(found.x) == pytest.approx(best, rel=1e-3)


def test_the_unit_of_compute_rescales_a_and_b_alone(published):
    runs = published("C4").loss_law
    law = OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss)
    unit = 1e-15  # of compute; parameters and tokens each take its root, and their ratio stays
    scaled = OverTrainingLaw.fit(runs.params * np.sqrt(unit), runs.tokens * np.sqrt(unit), runs.loss)
    assert scaled.irreducible == pytest.approx(law.irreducible, rel=1e-6)
    assert scaled.eta == pytest.approx(law.eta, rel=1e-6)
    assert [scaled.a, scaled.b] == pytest.approx(np.array([law.a, law.b]) * unit**law.eta, rel=1e-6)
    predicted = law.predict(compute=1e22, multiplier=100)
    assert scaled.predict(compute=1e22 * unit, multiplier=100) == pytest.approx(predicted, rel=1e-8)


@pytest.mark.parametrize("law", [OverTrainingLaw, ChinchillaLaw])
def test_runs_of_one_multiplier_do_not_tell_a_and_b_apart(law):
    params = np.geomspace(1e7, 1e9, 6)
    with pytest.raises(PerplabError, match="a and b are not identifiable"):
        law.fit(params, 20 * params, 2 + 1e3 * params**-0.3)


def test_runs_of_one_size_or_of_one_length_do_not_tell_the_irreducible_loss():
    many, one = np.geomspace(1e8, 1e10, 6), np.full(6, 1e8)
    with pytest.raises(PerplabError, match="one number of parameters"):
        OverTrainingLaw.fit(one, many, np.linspace(4, 3, 6))
    with pytest.raises(PerplabError, match="one number of tokens"):
        OverTrainingLaw.fit(many, one, np.linspace(4, 3, 6))


def test_fewer_points_than_parameters_are_refused_and_repeats_count_once():
    three = {name: values[:2] + values[-1:] for name, values in SMALL.items()}
    with pytest.raises(PerplabError, match="3 distinct points for the 4 parameters"):
        OverTrainingLaw.fit(**three, loss=[5, 4, 4.5])
    repeated = {name: values * 3 for name, values in three.items()}
    with pytest.raises(PerplabError, match="3 distinct points"):
        OverTrainingLaw.fit(**repeated, loss=[5, 4, 4.5] * 3)
    with pytest.raises(PerplabError, match="4 distinct points for the 5"):
        ChinchillaLaw.fit(**{name: values[1:] for name, values in SMALL.items()}, loss=[5, 4, 3, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1])
@pytest.mark.parametrize("column", ["params", "tokens", "loss"])
def test_numbers_that_are_not_positive_and_finite_are_refused_by_name(column, bad):
    columns = {**SMALL, "loss": [5, 4, 3.5, 3, 4.5]}
    columns[column] = [*columns[column][:3], bad, columns[column][4]]
    with pytest.raises(PerplabError, match=rf"{column} is .* in point 3"):
        OverTrainingLaw.fit(**columns)


def test_levenberg_marquardt_refuses_a_loss_that_grows_with_compute():
    growing = OverTrainingLaw(irreducible=1.0, a=0.01, b=0.01, eta=-0.1)
    with pytest.raises(PerplabError, match="does not fall with compute"):
        OverTrainingLaw.fit(**SMALL, loss=growing.predict(**SMALL), method="lm")


def test_an_unknown_method_is_named():
    with pytest.raises(PerplabError, match="'newton' is unknown: choose from varpro, lm"):
        OverTrainingLaw.fit(**SMALL, loss=[5, 4, 3.5, 3, 4.5], method="newton")


def test_predictions_need_exactly_two_positive_quantities():
    law = OverTrainingLaw(irreducible=1.8, a=200.0, b=300.0, eta=0.13)
    for wrong in ({}, {"params": 1e9}, {"params": 1e9, "tokens": 1e10, "multiplier": 10}):
        with pytest.raises(PerplabError, match="give two"):
            law.predict(**wrong)
    with pytest.raises(PerplabError, match="params is -1"):
        law.predict(params=-1, tokens=1e9)


def test_losses_at_or_under_the_irreducible_loss_have_no_logarithm():
    law = OverTrainingLaw(irreducible=1.8, a=200.0, b=300.0, eta=0.13)
    assert law.excess([2.0, 3.0]) == pytest.approx([0.2, 1.2])
    with pytest.raises(PerplabError, match=r"loss 1\.8 is not above"):
        law.excess([2.0, 1.8])


def test_an_optimal_multiplier_outside_the_fitted_runs_is_a_warning(published):
    runs = published("RedPajama").loss_law
    law = OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss)
    with pytest.warns(LawWarning, match="outside the fitted 20 to 320"):
        assert law.optimal_multiplier() == pytest.approx(7.4, abs=0.05)


@pytest.mark.filterwarnings("ignore:the best exponent is at the edge")
def test_a_coefficient_at_its_bound_is_a_warning():
    growing = np.array([2.0, 2.1, 2.2, 2.3, 2.05])
    with pytest.warns(LawWarning, match="at its bound 0"):
        OverTrainingLaw.fit(**SMALL, loss=growing)
    flat = OverTrainingLaw(irreducible=2.0, a=0.0, b=3.0, eta=0.1)
    with pytest.raises(PerplabError, match="no multiplier is best"):
        flat.optimal_multiplier()


def test_a_power_law_is_recovered_and_is_of_one_multiplier():
    params = np.geomspace(1e7, 1e9, 5)
    compute = 6 * 20 * params**2
    law = PowerLaw.fit(params, 20 * params, 1.9 + 500 * compute**-0.14)
    assert [law.irreducible, law.scale, law.eta] == pytest.approx([1.9, 500, 0.14], rel=1e-6)
    assert law.predict(compute=1e22, multiplier=20) == pytest.approx(1.9 + 500 * 1e22**-0.14)
    with pytest.raises(PerplabError, match="multipliers from 20 to 100"):
        PowerLaw.fit(params, params * [20, 20, 20, 20, 100], 1.9 + 500 * compute**-0.14)


def test_at_one_multiplier_both_laws_are_the_same_power_law():
    law = OverTrainingLaw(irreducible=1.8, a=200.0, b=300.0, eta=0.13)
    params = np.geomspace(1e7, 1e9, 5)
    power = PowerLaw.fit(params, 40 * params, law.predict(params=params, multiplier=40))
    assert [power.irreducible, power.scale, power.eta] == pytest.approx([1.8, law.offset(40), 0.13], rel=1e-6)


def chinchilla_grid():
    params, multiplier = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 5), [5, 20, 80, 320]))
    return {"params": params, "tokens": params * multiplier}


TRUE_CHINCHILLA = ChinchillaLaw(irreducible=1.69, params_scale=406.4, alpha=0.34, tokens_scale=410.7, beta=0.28)


def test_chinchilla_is_recovered_without_noise():
    grid = chinchilla_grid()
    fitted = ChinchillaLaw.fit(**grid, loss=TRUE_CHINCHILLA.predict(**grid)).numbers
    for name in ("irreducible", "params_scale", "alpha", "tokens_scale", "beta"):
        assert fitted[name] == pytest.approx(getattr(TRUE_CHINCHILLA, name), rel=1e-5)


def test_chinchilla_is_not_bent_by_two_runs_off_the_trend():
    grid = chinchilla_grid()
    loss = TRUE_CHINCHILLA.predict(**grid)
    loss[[3, 11]] *= 1.2
    fitted = ChinchillaLaw.fit(**grid, loss=loss)
    far = {"params": 7e10, "multiplier": 20}
    assert fitted.predict(**far) == pytest.approx(TRUE_CHINCHILLA.predict(**far), rel=1e-3)


def test_chinchilla_minimises_the_huber_cost_of_log_losses():
    grid = chinchilla_grid()
    loss = TRUE_CHINCHILLA.predict(**grid) * np.exp(np.random.default_rng(0).normal(0, 0.01, 20))
    fitted = ChinchillaLaw.fit(**grid, loss=loss)

    def cost(law):
        residual = np.abs(np.log(law.predict(**grid)) - np.log(loss))
        return np.where(residual < 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum()

    for name in ("irreducible", "params_scale", "alpha", "tokens_scale", "beta"):
        for factor in (0.999, 1.001):
            moved = replace(fitted, **{name: factor * getattr(fitted, name)})
            assert cost(moved) > cost(fitted)


@pytest.mark.parametrize(
    "law",
    [
        OverTrainingLaw(irreducible=1.8, a=200.0, b=300.0, eta=0.13, multipliers=(20.0, 320.0)),
        OverTrainingLaw(irreducible=0.1 + 0.2, a=1 / 3, b=1e300, eta=0.13),
        PowerLaw(irreducible=1.8, scale=5.0, eta=0.1, multipliers=(20.0, 20.0)),
        TRUE_CHINCHILLA,
    ],
)
def test_a_law_read_back_is_the_law_that_was_saved(law, tmp_path):
    law.save(tmp_path / "law.json")
    assert type(law).load(tmp_path / "law.json") == law
    assert read_law(tmp_path / "law.json") == law


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a law"),
        ('{"law": "newton"}', "not a law"),
        ('{"law": "over-training", "irreducible": 1.0}', "not a whole over-training law"),
        ('{"law": "over-training", "irreducible": "1", "a": 1, "b": 1, "eta": 0.1}', "irreducible = '1'"),
        ('{"law": "over-training", "irreducible": NaN, "a": 1, "b": 1, "eta": 0.1}', "irreducible"),
        ('{"law": "over-training", "irreducible": 1, "a": [1, 2], "b": 1, "eta": 0.1}', "a = "),
        ('{"law": "over-training", "irreducible": 1, "a": 1, "b": 1, "eta": 0.1, "multipliers": [1]}', "multipliers"),
        ('{"law": "over-training", "irreducible": 1, "a": 1, "b": 1, "eta": 0.1, "c": 1}', "c = 1"),
    ],
)
def test_a_file_that_is_no_whole_law_is_named(text, words, tmp_path):
    (tmp_path / "law.json").write_text(text)
    with pytest.raises(PerplabError, match=words) as refused:
        read_law(tmp_path / "law.json")
    assert "law.json" in str(refused.value)


def test_a_law_of_another_kind_is_refused(tmp_path):
    TRUE_CHINCHILLA.save(tmp_path / "law.json")
    with pytest.raises(PerplabError, match="not a law of the kind over-training"):
        OverTrainingLaw.load(tmp_path / "law.json")
