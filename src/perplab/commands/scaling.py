"""`perplab scaling run | fit | predict | plan | plot`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from perplab import laws
from perplab.commands.assessment_page import (
    assessment_figures,
    count,
    print_assessment,
    warnings_told,
)
from perplab.commands.tables import right_aligned
from perplab.errors import PerplabError
from perplab.laws.allocation import allocate
from perplab.laws.kinds import LAWS
from perplab.laws.planner import Plan
from perplab.laws.scaling import FitMethod, LossLaw

app = App(name="scaling", help="Predict a training run from smaller ones.")
app.command("perplab.commands.scaling_run:run", name="run", help="Train a ladder of small models and fit a law to it.")

LawName = Literal["over-training", "chinchilla", "power", "downstream-error"]
Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def fit(
    runs: Path,
    /,
    *,
    out: Path,
    law: LawName = "over-training",
    method: FitMethod | None = None,
    corpus: str | None = None,
    max_compute: float = math.inf,
    min_multiplier: float = 0,
    resamples: int = 200,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Fit a law to RUNS, write it to OUT, and say how far to trust it.

    Args:
        runs: Run log with params, tokens or multiplier, and loss: .csv, .jsonl, or a folder of published results.
        out: File for the law.
        law: Which law.
        method: How the over-training law is fitted: varpro (the default) or lm.
        corpus: Take the runs of this training corpus alone.
        max_compute: Fit runs of at most so many floating-point operations; predict the others.
        min_multiplier: Leave out runs of fewer tokens per parameter.
        resamples: Redrawings of the residuals for the intervals; 0 for none.
        seed: Of the redrawings.
        as_json: Print one JSON object.
    """
    if method is not None and law != "over-training":
        raise PerplabError(f"the {law} law has one way of fitting", "leave --method out")
    options = {} if method is None else {"method": method}
    with warnings_told():
        known = _runs_of(runs, corpus).where(lambda run: run.multiplier >= min_multiplier)
        fitted = known.where(lambda run: run.compute <= max_compute)
        held_out = known.where(lambda run: run.compute > max_compute)
        found = laws.assess(LAWS[law], fitted, held_out, resamples=resamples, seed=seed, **options)
    found.law.save(out)
    if as_json:
        print(json.dumps({"law": law, "file": str(out), "runs": len(fitted)} | assessment_figures(found)))
        return
    console = Console(highlight=False)
    console.print(f"{law} law of {len(fitted)} runs, written to {out}", soft_wrap=True)
    print_assessment(console, found)


@app.command
def predict(
    law: Path,
    /,
    *,
    params: float | None = None,
    tokens: float | None = None,
    multiplier: float | None = None,
    compute: float | None = None,
    error_law: Path | None = None,
    as_json: Json = False,
) -> None:
    """Predict the loss of a training run, from two of parameters, tokens, tokens per parameter and compute.

    Args:
        law: File of a law of the loss.
        params: Parameters, embeddings included.
        tokens: Training tokens.
        multiplier: Training tokens per parameter.
        compute: Floating-point operations of the training, 6 x params x tokens.
        error_law: File of a downstream-error law: predict the error over tasks as well.
        as_json: Print one JSON object.
    """
    loss_law = _loss_law(law)
    run = allocate(params=params, tokens=tokens, multiplier=multiplier, compute=compute)
    with warnings_told():
        loss_law.warn_outside(float(run.multiplier))
    told = {name: float(getattr(run, name)) for name in ("params", "tokens", "multiplier", "compute")}
    told["loss"] = float(loss_law.predict(params=run.params, tokens=run.tokens))
    if error_law is not None:
        told["error"] = float(laws.DownstreamErrorLaw.load(error_law).predict(told["loss"]))
    if as_json:
        print(json.dumps(told))
        return
    table = right_aligned(*told)
    table.add_row(*(count(told[name]) for name in list(told)[:4]), *(f"{told[name]:.4f}" for name in list(told)[4:]))
    Console().print(table)


@app.command
def plan(law: Path, /, *, target_loss: float, inference_tokens: float = 0, as_json: Json = False) -> None:
    """Choose parameters and tokens that reach a loss with the least compute for training and use together.

    Args:
        law: File of an over-training or Chinchilla law.
        target_loss: Nats per token to reach.
        inference_tokens: Tokens the model will read or write in use.
        as_json: Print one JSON object.
    """
    loss_law = _loss_law(law)
    if isinstance(loss_law, laws.PowerLaw):
        raise PerplabError(f"{law} is of one multiplier and cannot choose another", "give an over-training law")
    with warnings_told():
        advice = laws.plan(loss_law, target_loss, inference_tokens)
    named = {"plan": advice.plan, "training optimal": advice.training_optimal}
    if as_json:
        told = {name.replace(" ", "_"): _plan_figures(chosen) for name, chosen in named.items()}
        print(json.dumps(told | {"savings": advice.savings}))
        return
    table = right_aligned("", "params", "tokens", "D/N", "training", "inference", "total")
    for name, chosen in named.items():
        table.add_row(name, *map(count, _plan_figures(chosen).values()))
    Console().print(table)
    Console(highlight=False).print(f"The plan saves {advice.savings:.1%} of the floating-point operations.")


@app.command
def plot(runs: Path, /, *, law: Path, out: Path, corpus: str | None = None, min_multiplier: float = 0) -> None:
    """Draw RUNS and a law.

    Args:
        runs: Run log, as for fit.
        law: File of a law.
        out: Picture to write: .png, .svg or .pdf.
        corpus: Draw the runs of this training corpus alone.
        min_multiplier: Leave out runs of fewer tokens per parameter.
    """
    with warnings_told():
        drawn = _runs_of(runs, corpus).where(lambda run: run.multiplier >= min_multiplier)
    laws.plot_law(laws.read_law(law), drawn, out)
    print(out)


def _runs_of(path: Path, corpus: str | None) -> laws.Runs:
    runs = laws.read_runs(path)
    names = sorted({run.corpus for run in runs})
    if corpus is None and len(names) > 1:
        raise PerplabError(f"{path} has runs on {', '.join(names)}", "choose one with --corpus")
    if corpus is not None and corpus not in names:
        raise PerplabError(f"{path} has no runs on {corpus!r}", f"choose from {', '.join(names)}")
    return runs if corpus is None else runs.where(lambda run: run.corpus == corpus)


def _loss_law(path: Path) -> Any:
    law = laws.read_law(path)
    if not isinstance(law, LossLaw):
        raise PerplabError(f"{path} is a law of the error", "give a law of the loss first, and this one as --error-law")
    return law


def _plan_figures(chosen: Plan) -> dict[str, float]:
    return {
        name: getattr(chosen, name) for name in ("params", "tokens", "multiplier", "training", "inference", "total")
    }
