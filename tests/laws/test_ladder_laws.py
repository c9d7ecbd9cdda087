"""What laws do with the runs of a ladder: rounded multipliers, a known irreducible loss, held-out runs in a picture."""

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.laws import DownstreamErrorLaw, OverTrainingLaw, Run, Runs, assess, plot_law
from perplab.laws.assessment import with_predicted_loss

LAW = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136)


def run(params, tokens):
    return Run(params=params, tokens=tokens, loss=float(LAW.predict(params=params, tokens=tokens)))


def test_multipliers_that_differ_by_rounding_to_steps_are_one():
    runs = Runs([run(10_000, 201_000), run(50_000, 999_000), run(10_000, 799_000), run(70_000, 1_402_000)])
    groups = runs.by_multiplier()
    assert list(groups) == [20.0, 79.9]
    assert [list(group) for group in groups.values()] == [[runs[0], runs[1], runs[3]], [runs[2]]]


def test_three_runs_do_where_the_irreducible_loss_is_known():
    params, tokens = np.array([1e7, 4e7, 1e7]), np.array([2e8, 8e8, 3.2e9])
    losses = LAW.predict(params=params, tokens=tokens)
    fitted = OverTrainingLaw.fit_above(1.8, params, tokens, losses)
    assert fitted.irreducible == 1.8
    assert (fitted.a, fitted.b, fitted.eta) == pytest.approx((LAW.a, LAW.b, LAW.eta), rel=1e-5)
    with pytest.raises(PerplabError, match="reducible_loss is 0"):
        OverTrainingLaw.fit_above(losses.max(), params, tokens, losses)
    with pytest.raises(PerplabError, match="2 distinct points"):
        OverTrainingLaw.fit_above(1.8, params[:2], tokens[:2], losses[:2])


def test_an_error_law_is_tested_on_predicted_losses(published):
    parts = published("RedPajama")
    law = OverTrainingLaw.fit(parts.loss_law.params, parts.loss_law.tokens, parts.loss_law.loss)
    found = assess(DownstreamErrorLaw, parts.error_law, with_predicted_loss(law, parts.targets), resamples=0)
    errors = {row.run.params: row.relative_error for row in found.held_out}
    assert errors[1439795200] == pytest.approx(0.036365, abs=1e-4)  # the paper's figures, which are of the whole chain
    assert errors[6889410560] == pytest.approx(0.000464, abs=1e-4)


def test_each_held_out_run_has_the_errors_of_its_baselines(published):
    parts = published("C4")
    found = assess(OverTrainingLaw, parts.loss_law, parts.targets, resamples=0)
    last = max(parts.loss_law, key=lambda run: run.compute).loss
    for row in found.held_out:
        assert row.baseline_errors["last value"] == pytest.approx(abs(last - row.measured) / row.measured)
    for name in found.held_out[0].baselines:
        assert found.mean_errors[name] == pytest.approx(np.mean([row.baseline_errors[name] for row in found.held_out]))


def test_held_out_runs_are_drawn_hollow(published, tmp_path):
    pytest.importorskip("matplotlib")
    parts = published("RedPajama")
    drawn = {}
    for name, held_out in (("with", parts.targets), ("without", ())):
        plot_law(LAW, parts.loss_law, tmp_path / f"{name}.svg", held_out)
        drawn[name] = (tmp_path / f"{name}.svg").read_text()
    assert drawn["with"].count("fill: none") >= drawn["without"].count("fill: none") + 1
