"""A ladder: every cell is trained and measured once, however it is interrupted, and a failing one takes no other along.

The ladder of six tiny cells is made once; the tests go on with it, or with copies of its folder.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from perplab.commands.scaling import app
from perplab.commands.scaling_run import LadderFlags
from perplab.errors import PerplabError
from perplab.laws import LawWarning, OverTrainingLaw, read_runs
from perplab.laws.ladder import run_ladder
from perplab.laws.ladder.planning import choose_next, plan_runs
from perplab.models import load
from perplab.scoring.perplexity import perplexity
from perplab.text import open_corpus
from perplab.text.synthetic.languages import HMM, language_corpus

FLAGS = {
    "shapes": "8x1,12x1,16x1",
    "multipliers": "5",
    "extra": "8x1@10,8x1@20",
    "held_out": "12x1@10",
    "heldout_size": "4000",
    "batch_tokens": "512",
}
CONFIG = LadderFlags(**FLAGS | {"workers": 2, "heldout_size": 4000, "batch_tokens": 512}).config
SECONDS = {"training_seconds", "measuring_seconds"}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERPLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Path of generated sentences."""
    language = HMM.random(states=8, symbols=12, length=40, seed=0)
    path = tmp_path_factory.mktemp("text") / "sentences.jsonl"
    with path.open("w") as file:
        for document in language_corpus(language, 4000, 0, per_document=4):
            file.write(json.dumps({"text": document.text}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """The ladder, and the folder it lies in."""
    out = tmp_path_factory.mktemp("ladder")
    return SimpleNamespace(out=out, ladder=run_ladder(corpus, out, CONFIG, progress=False))


def words_of(names):
    """The flags of these names, as they are typed."""
    return [word for name in sorted(names) for word in (f"--{name.replace('_', '-')}", FLAGS[name])]


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in rows]


def test_rows_say_what_was_trained(made):
    rows = {row["cell"]: row for row in made.ladder.rows}
    assert list(rows) == [cell.name for cell in CONFIG.cells]
    for cell in CONFIG.cells:
        row = rows[cell.name]
        model = load(made.out / "cells" / cell.name).model
        assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
        assert row["tokens"] % CONFIG.training.batch_tokens == 0
        assert abs(row["tokens"] - cell.multiplier * row["params"]) <= CONFIG.training.batch_tokens / 2
        assert row["compute"] == 6 * row["params"] * row["tokens"]
        assert row["held_out"] == cell.held_out == (cell.name == "12x1@10-seed0")
    assert len(made.ladder.fitted) == 5
    assert len(made.ladder.held_out) == 1


def test_the_loss_is_the_packages_own_perplexity_of_the_held_out_side(made, corpus):
    row = made.ladder.rows[0]
    heldout = open_corpus(corpus, "heldout").limited(CONFIG.heldout_bytes)
    cost = perplexity(load(made.out / "cells" / row["cell"]), heldout)
    assert row["loss"] == pytest.approx(math.log(cost.token_perplexity), rel=1e-6)
    assert row["loss_interval"][0] < row["loss"] < row["loss_interval"][1]


def test_the_log_is_one_that_laws_are_fitted_to(made):
    runs = read_runs(made.out / "runs.jsonl")
    assert [run.loss for run in runs] == [row["loss"] for row in made.ladder.rows]
    assert len(runs.by_multiplier()) == 3  # rounding to whole steps makes no multipliers of its own


def test_what_is_done_is_not_done_again(made, corpus):
    before = {file: file.stat().st_mtime_ns for file in made.out.glob("cells/*/row.json")}
    again = run_ladder(corpus, made.out, CONFIG, progress=False)
    assert again.rows == made.ladder.rows
    assert {file: file.stat().st_mtime_ns for file in made.out.glob("cells/*/row.json")} == before


def test_a_ladder_that_was_stopped_goes_on_to_the_same_rows_with_another_number_of_workers(made, corpus, tmp_path):
    out = tmp_path / "ladder"
    few = replace(CONFIG, extra=("8x1@10",), held_out=(), workers=1)
    changes = ("--extra", "8x1@10", "--held-out", "", "--workers", "1")
    words = ["scaling", "run", corpus, "--out", str(out), *words_of(FLAGS.keys() - {"extra", "held_out"}), *changes]
    process = subprocess.Popen(
        [sys.executable, "-m", "perplab.cli", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not any(file.stat().st_size for file in out.glob("cells/*/run/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "the same command continues" in process.communicate()[1]
    assert process.returncode == 130
    assert len(list(out.glob("cells/*/row.json"))) < len(few.cells)
    resumed = run_ladder(corpus, out, few, progress=False)
    names = [cell.name for cell in few.cells]
    assert without_seconds(resumed.rows) == without_seconds(row for row in made.ladder.rows if row["cell"] in names)
    for cell in few.cells:
        weights = [folder / "cells" / cell.name / "model.safetensors" for folder in (out, made.out)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@dataclass(frozen=True)
class RefusesWide:
    """Tasks that fail on one of the models."""

    name: str = "refuses wide models"

    def __call__(self, language_model):
        if language_model.model.config.hidden_size == 16:
            raise PerplabError("this model is too wide", "take another")
        if language_model.model.config.hidden_size == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"one": 0.25, "other": 0.75}


def test_a_failing_cell_is_named_and_the_others_are_kept(corpus, tmp_path):
    few = replace(CONFIG, extra=(), held_out=())
    with pytest.raises(PerplabError) as refused:
        run_ladder(corpus, tmp_path, few, tasks=RefusesWide(), progress=False)
    assert "16x1@5-seed0 failed (this model is too wide: take another)" in str(refused.value)
    assert "12x1@5-seed0 failed (its process ended with status -9)" in str(refused.value)
    assert "1 of 3 cells are finished and kept" in str(refused.value)
    (row,) = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert row["cell"] == "8x1@5-seed0"
    assert row["errors"] == {"one": 0.25, "other": 0.75}
    assert row["error"] == 0.5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"held_out": ("16x1@10",)}, "held_out"),
        ({"training": replace(CONFIG.training, learning_rate=0.5)}, "learning_rate"),
        ({"heldout_bytes": 999}, "measured on"),
    ],
)
def test_another_ladder_is_refused_the_folder(made, corpus, changes, complaint):
    with pytest.raises(PerplabError, match=f"holds a run with other settings.*{complaint}"):
        run_ladder(corpus, made.out, replace(CONFIG, **changes), progress=False)


def test_more_than_an_epoch_is_a_warning_and_less_than_a_step_is_refused(tiny_tokenizer):
    with pytest.warns(LawWarning, match="over one epoch of 1000"):
        plan_runs(CONFIG, tiny_tokenizer, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_runs(CONFIG, tiny_tokenizer, 10**9)
    with pytest.raises(PerplabError, match=r"8x1@0\.01-seed0 has .* tokens, less than half a batch"):
        plan_runs(replace(CONFIG, multipliers=(0.01,)), tiny_tokenizer, 10**9)


def test_the_longest_run_that_fits_the_memory_is_next():
    long, middle, short = (
        SimpleNamespace(compute=compute, memory=memory) for compute, memory in ((9.0, 90), (5.0, 50), (1.0, 10))
    )
    assert choose_next([short, long, middle], [], 1000) is long
    assert choose_next([short, long, middle], [middle], 99) is short
    assert choose_next([long, middle], [middle], 99) is None
    assert choose_next([long], [], 1) is long  # alone it may try
    assert choose_next([], [], 1000) is None


@pytest.fixture
def scaling(capsys):
    def run(*words):
        app([str(word) for word in words], exit_on_error=False, print_error=False, result_action="return_value")
        return capsys.readouterr()

    return run


def test_the_command_predicts_the_held_out_run_beside_both_baselines(made, corpus, scaling, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("run", corpus, "--out", made.out, *words_of(FLAGS), "--resamples", 50, "--no-progress")
    told = json.loads(scaling(*words, "--json", "--plot", tmp_path / "law.svg", "--html", tmp_path / "p.html").out)
    runs = made.ladder.fitted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss)
    assert OverTrainingLaw.load(made.out / "law.json") == law
    (row,) = told["loss"]["held_out"]
    (run,) = made.ladder.held_out
    assert row["predicted"] == pytest.approx(float(law.predict(params=run.params, tokens=run.tokens)))
    assert row["interval"][0] <= row["predicted"] <= row["interval"][1]
    last = max(runs, key=lambda run: run.compute).loss
    assert row["baselines"]["last value"] == pytest.approx(abs(last - run.loss) / run.loss)
    assert row["baselines"].keys() == {"last value", "power law of one multiplier"}
    assert "<title>held out: " in (tmp_path / "p.html").read_text()
    assert (tmp_path / "law.svg").stat().st_size > 1000
    assert f"{row['relative_error']:.2%}" in scaling(*words).out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--shapes", "8x1,16x1", "--extra", "8x1@80", "--held-out", ""), "3 distinct points for the 4 parameters"),
        (("--extra", "", "--held-out", ""), "all runs have one token multiplier"),
        (("--multipliers", "-20"), "multiplier is -20"),
        (("--multipliers", "many"), "multiplier is 'many'"),
        (("--held-out", "32x2@8"), "32x2@8 is off the grid"),
        (("--tasks", "riddles"), "unknown task 'riddles'"),
    ],
)
def test_a_grid_that_cannot_be_fitted_is_refused_before_it_is_trained(scaling, corpus, tmp_path, words, complaint):
    with pytest.raises(PerplabError) as refused:
        scaling("run", corpus, "--out", tmp_path / "out", *words)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
