"""Language models scale reliably with over-training and on downstream tasks (Gadre et al., arXiv 2403.08540).

Five published runs of each training set are fitted, and the runs that are larger or trained longer are predicted. The
runs are those of the paper's repository, https://github.com/mlfoundations/scaling (MIT licence), losses on C4's
evaluation text and errors over its 17 tasks: `data/scaling_over_training.csv` holds the 24 that the fits and their
targets need. Nothing is trained and nothing is drawn at random: a seed could only redraw the residuals of a fit with
one degree of freedom, which says how far to trust the law and is no repetition of the experiment.

Beside the published errors stand those of the baselines. At 20 tokens per parameter the power law in compute is the
same law, so the two differ on the longer runs alone. With the folder `scaling_testbed` of all 104 runs among the
third-party data, the law also predicts every other run of at least 10 tokens per parameter.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from perplab import laws
from perplab.claims.claim import Claim, Paper, Scale
from perplab.laws.baselines import LAST_VALUE, POWER_LAW, STRAIGHT_LINE
from perplab.laws.law import Floats

_TESTBED = "scaling_testbed"
_TARGETS = {
    "C4": ("1.4B, M = 80", "6.9B, M = 20"),
    "RedPajama": ("1.4B, M = 640", "6.9B, M = 20"),
    "RefinedWeb": ("1.4B, M = 320", "6.9B, M = 20"),
}
_LOSS_ERRORS = {"C4": (1.50, 4.30), "RedPajama": (0.7103, 0.7320), "RefinedWeb": (0.01, 1.62)}
_TASK_ERRORS = {"C4": (9.58, 0.14), "RedPajama": (3.6365, 0.0464), "RefinedWeb": (5.62, 2.94)}
"""Published relative errors of the two targets, in percent."""
_TOLERANCE = 0.01
"""Points: most are published to two decimals."""
_WITHOUT_LARGEST = "task error without the 1.4B run in its fit"


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Relative errors of prediction in percent, of the laws and of the baselines; scale and seed change nothing."""
    with as_file(files(__package__) / "data" / "scaling_over_training.csv") as table:
        published = laws.read_runs(table)
    figures: dict[str, float] = {}
    for corpus in _TARGETS:
        figures |= _predicted_targets(corpus, _of_corpus(published, corpus))
    for kind, baselines in (("loss", (POWER_LAW, LAST_VALUE)), ("task error", (STRAIGHT_LINE, LAST_VALUE))):
        for by in ("", *(f", {name}" for name in baselines)):
            figures[f"targets: {kind}{by}"] = float(
                np.mean([figures[f"{target}: {kind}{by}"] for target in _targets()])
            )
    if data is not None and (data / _TESTBED).is_dir():
        figures |= _predicted_testbed(laws.read_runs(data / _TESTBED))
    return figures


def _targets() -> Iterator[str]:
    return (f"{corpus}, {target}" for corpus, targets in _TARGETS.items() for target in targets)


def _of_corpus(runs: laws.Runs, corpus: str) -> laws.Runs:
    return runs.where(lambda run: run.corpus == corpus)


def _for_loss_law(run: laws.Run) -> bool:
    """The paper's five: four sizes at 20 tokens per parameter, and the smallest at 320."""
    return run.params < 1e9 and (run.multiplier == 20 or (run.multiplier == 320 and run.params < 2e7))


def _for_error_law(run: laws.Run) -> bool:
    """The same and one run that is well above chance."""
    return _for_loss_law(run) or (run.params < 2e9 and run.multiplier == 20)


def _loss_law(runs: laws.Runs) -> laws.OverTrainingLaw:
    return laws.OverTrainingLaw.fit(runs.params, runs.tokens, runs.loss)


def _predicted_targets(corpus: str, runs: laws.Runs) -> dict[str, float]:
    small, above_chance = runs.where(_for_loss_law), runs.where(_for_error_law)
    targets = runs.where(lambda run: not _for_error_law(run))
    loss = laws.predict_runs(_loss_law(small), targets)
    losses = {"loss": loss} | _named("loss", laws.loss_baselines(small, targets))
    errors = {}
    for kind, fitted in (("task error", above_chance), (_WITHOUT_LARGEST, small)):
        error_law = laws.DownstreamErrorLaw.fit(fitted.loss, fitted.error)
        errors[kind] = error_law.predict(loss)
        errors |= _named(kind, laws.error_baselines(fitted, targets, loss))
    missed = {name: _percent(guess, targets.loss) for name, guess in losses.items()}
    missed |= {name: _percent(guess, targets.error) for name, guess in errors.items()}
    return {
        f"{corpus}, {target}: {name}": float(values[row])
        for row, target in enumerate(_TARGETS[corpus])
        for name, values in missed.items()
    }


def _predicted_testbed(runs: laws.Runs) -> dict[str, float]:
    """Mean over the runs that were not fitted, from 10 tokens per parameter: runs of 5 lie off every trend."""
    missed: dict[str, list[Floats]] = {}
    for corpus in _TARGETS:
        known = _of_corpus(runs, corpus)
        small = known.where(_for_loss_law)
        others = known.where(lambda run: run.multiplier >= 10 and not _for_loss_law(run))
        predicted = {"loss": laws.predict_runs(_loss_law(small), others)}
        for name, guess in (predicted | _named("loss", laws.loss_baselines(small, others))).items():
            missed.setdefault(name, []).append(_percent(guess, others.loss))
    return {f"testbed: {name}": float(np.concatenate(values).mean()) for name, values in missed.items()}


def _named(kind: str, predictions: Mapping[str, Floats]) -> dict[str, Floats]:
    return {f"{kind}, {name}": predicted for name, predicted in predictions.items()}


def _percent(predicted: Floats, measured: Floats) -> Floats:
    return 100 * laws.relative_error(predicted, measured)


def _comes_out(target: str, kind: str, published: float, baseline: str) -> Claim:
    """The claim that a published error of prediction comes out of the published runs."""
    return Claim(
        name=f"{target}: {kind}",
        statement=f"{target}: relative error of the predicted {kind}",
        metric=f"{target}: {kind}",
        effect="value",
        baseline=f"{target}: {kind}, {baseline}",
        unit="%",
        paper_value=published,
        tolerance=_TOLERANCE,
    )


def _beats(metric: str, subject: str, baseline: str) -> Claim:
    return Claim(
        name=f"{metric}, against the {baseline}",
        statement=f"{subject} is predicted better than by the {baseline}",
        metric=metric,
        baseline=f"{metric}, {baseline}",
        unit="%",
    )


PAPER = Paper(
    name="scaling_over_training",
    title="Language models scale reliably with over-training and on downstream tasks",
    reference="arXiv 2403.08540",
    measure=measure,
    seeded=False,
    note=(
        "Laws of five published runs of each training set predict runs that are larger or trained longer (M: tokens "
        "per parameter). Beside a loss stands the power law in compute of the four runs at M = 20, beside a task "
        "error the straight line over the loss. At M = 20 both laws of the loss are one, and on C4 the power law is "
        f"nearer at M = 80. The other runs are measured with --data-dir, a folder that holds {_TESTBED}/."
    ),
    data=f"{_TESTBED}/ with models__*.json and evals__*.json of github.com/mlfoundations/scaling",
    claims=(
        *(
            _comes_out(f"{corpus}, {target}", kind, published[corpus][row], baseline)
            for kind, published, baseline in (
                ("loss", _LOSS_ERRORS, POWER_LAW),
                ("task error", _TASK_ERRORS, STRAIGHT_LINE),
            )
            for corpus, targets in _TARGETS.items()
            for row, target in enumerate(targets)
        ),
        _comes_out("RedPajama, 6.9B, M = 20", _WITHOUT_LARGEST, 10.64, STRAIGHT_LINE),
        _beats("targets: loss", "The loss of the six targets", POWER_LAW),
        _beats("targets: loss", "The loss of the six targets", LAST_VALUE),
        _beats("targets: task error", "The task error of the six targets", STRAIGHT_LINE),
        _beats("targets: task error", "The task error of the six targets", LAST_VALUE),
        _beats("testbed: loss", "The loss of every other run from M = 10", POWER_LAW),
        _beats("testbed: loss", "The loss of every other run from M = 10", LAST_VALUE),
    ),
)
