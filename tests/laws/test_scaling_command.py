"""`perplab scaling`: the library's numbers on the command line, and one line for what is wrong."""

import json
from importlib.resources import files

import pytest

from perplab.commands.scaling import app
from perplab.errors import PerplabError
from perplab.laws import DownstreamErrorLaw, OverTrainingLaw, plan

PUBLISHED = str(files("perplab.claims") / "data" / "scaling_over_training.csv")


@pytest.fixture
def scaling(capsys, tmp_path, monkeypatch):
    """`scaling(words)` runs the command in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        app([str(word) for word in words], exit_on_error=False, print_error=False, result_action="return_value")
        return capsys.readouterr()

    return run


@pytest.fixture
def law(scaling, tmp_path):
    """The law of the five published runs on RedPajama, fitted by the command."""
    scaling("fit", PUBLISHED, "--corpus", "RedPajama", "--max-compute", 1e20, "--resamples", 0, "--out", "law.json")
    return OverTrainingLaw.load(tmp_path / "law.json")


def test_fit_tells_parameters_and_held_out_errors(scaling):
    arguments = (
        "fit",
        PUBLISHED,
        "--corpus",
        "RedPajama",
        "--max-compute",
        1e20,
        "--out",
        "law.json",
        "--resamples",
        20,
    )
    told = json.loads(scaling(*arguments, "--json").out)
    assert told["runs"] == 5
    assert told["parameters"]["eta"]["value"] == pytest.approx(0.136425, rel=1e-4)
    low, high = told["parameters"]["eta"]["interval"]
    assert low < 0.136425 < high
    assert told["left_out"].count(None) == 1  # without the one run of another multiplier there is no law
    errors = {(row["params"], row["multiplier"]): row["relative_error"] for row in told["held_out"]}
    assert errors[6889410560, 20] == pytest.approx(0.007320, abs=1e-5)
    assert errors[1439795200, 640] == pytest.approx(0.007103, abs=1e-5)
    assert told["mean_errors"]["over-training law"] < told["mean_errors"]["power law of one multiplier"]
    assert told["mean_errors"]["last value"] > 0.2

    table = scaling(*arguments).out
    for word in ("over-training law of 5 runs", "irreducible", "0.73%", "last value"):
        assert word in table


def test_both_methods_write_the_same_law(scaling, law, tmp_path):
    arguments = ("fit", PUBLISHED, "--corpus", "RedPajama", "--max-compute", 1e20, "--resamples", 0)
    scaling(*arguments, "--method", "lm", "--out", "lm.json")
    assert OverTrainingLaw.load(tmp_path / "lm.json").eta == pytest.approx(law.eta, rel=1e-6)


def test_predict_says_loss_and_error_from_any_two_quantities(scaling, law, tmp_path):
    scaling(
        "fit", PUBLISHED, "--corpus", "RedPajama", "--max-compute", 3e20, "--law", "downstream-error", "--out", "e.json"
    )
    error_law = DownstreamErrorLaw.load(tmp_path / "e.json")
    expected = float(law.predict(params=7e9, multiplier=20))
    for words in (("--tokens", 1.4e11), ("--multiplier", 20), ("--compute", 6 * 7e9 * 1.4e11)):
        told = json.loads(
            scaling("predict", "law.json", "--params", 7e9, *words, "--error-law", "e.json", "--json").out
        )
        assert told["loss"] == pytest.approx(expected, rel=1e-12)
        assert told["error"] == pytest.approx(float(error_law.predict(expected)), rel=1e-12)
        assert told["multiplier"] == pytest.approx(20)
    assert f"{expected:.4f}" in scaling("predict", "law.json", "--params", 7e9, "--multiplier", 20).out


def test_predicting_outside_the_fitted_multipliers_is_a_line_on_standard_error(scaling, law):
    said = scaling("predict", "law.json", "--params", 7e9, "--multiplier", 1000)
    assert said.err.startswith("perplab: warning: multiplier 1e+03 lies outside the fitted 20 to 320")


def test_plan_is_the_planners(scaling, law):
    told = json.loads(scaling("plan", "law.json", "--target-loss", 2.4, "--inference-tokens", 1e13, "--json").out)
    with pytest.warns(UserWarning, match="outside"):
        advice = plan(law, 2.4, 1e13)
    assert told["plan"]["params"] == advice.plan.params
    assert told["savings"] == advice.savings
    assert "D/N" in scaling("plan", "law.json", "--target-loss", 2.4).out


def test_plot_writes_the_picture(scaling, law, tmp_path):
    pytest.importorskip("matplotlib")
    scaling("plot", PUBLISHED, "--corpus", "RedPajama", "--law", "law.json", "--out", "law.svg")
    assert (tmp_path / "law.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("fit", PUBLISHED, "--out", "x.json"), "choose one with --corpus"),
        (("fit", PUBLISHED, "--out", "x.json", "--corpus", "Pile"), "choose from C4, RedPajama, RefinedWeb"),
        (("fit", PUBLISHED, "--out", "x.json", "--corpus", "C4", "--max-compute", 1), "distinct points"),
        (("fit", PUBLISHED, "--out", "x.json", "--corpus", "C4", "--law", "power"), "multipliers from 20 to 320"),
        (
            ("fit", PUBLISHED, "--out", "x.json", "--corpus", "C4", "--law", "power", "--method", "lm"),
            "leave --method out",
        ),
        (("fit", "nowhere.csv", "--out", "x.json"), "nowhere.csv"),
        (("predict", "nowhere.json", "--params", 1, "--tokens", 1), "nowhere.json does not exist"),
        (("predict", "law.json", "--params", 1), "give two"),
        (("predict", "law.json", "--params", 1, "--tokens", -1), "tokens is -1"),
        (("predict", "law.json", "--params", 1e9, "--tokens", 1e10, "--error-law", "law.json"), "downstream-error"),
        (("plan", "law.json", "--target-loss", 1), "not above the irreducible loss"),
        (("plot", PUBLISHED, "--corpus", "C4", "--law", "law.json", "--out", "x.gif"), "x.gif"),
    ],
)
def test_bad_input_is_named(scaling, law, words, complaint):
    with pytest.raises(PerplabError) as refused:
        scaling(*words)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
