"""The section of a ladder: runs that were fitted, runs that were predicted, and what the law had to beat.

Decisions:
- Losses stand over compute, a line for each multiplier. Runs that were held out are points apart from the lines, and
  so is what the law said of them.
- An error of prediction is never shown without those of the baselines.
"""

from collections.abc import Sequence

import numpy as np

from perplab.laws import Assessment, Runs
from perplab.laws.assessment import LEVEL, Prediction
from perplab.report.curves import Curve, curves
from perplab.report.parts import Column, Figure, Section, Table, number, percentage

_COMPUTE = "training compute 6ND, FLOPs"
_LOSS = "nats a token"


def ladder_section(fitted: Runs, loss: Assessment, error: Assessment | None = None) -> Section:
    """Plot and tables of a ladder.

    Args:
        fitted: the runs that the laws were fitted to.
        loss: the law of the loss and its trials.
        error: the law of the error over tasks, where tasks were asked.
    """
    tables = [_parameters(loss), _predictions(loss)]
    if error is not None:
        tables += [_parameters(error), _predictions(error)]
    note = (
        f"{len(fitted)} runs were fitted. The held-out runs were named before anything was trained, and are predicted; "
        f"intervals are of {LEVEL:.0%}, by redrawing the residuals of the fit."
    )
    return Section("ladder", "Scaling ladder", "Scaling ladder", note, [_figure(fitted, loss)], tables)


def _figure(fitted: Runs, loss: Assessment) -> Figure:
    heading = "Loss against compute"
    lines = [_curve(f"M = {multiplier:.3g}", runs) for multiplier, runs in fitted.by_multiplier().items()]
    compute = np.array([row.run.compute for row in loss.held_out])
    apart = {"held out": [row.measured for row in loss.held_out], "predicted": [row.predicted for row in loss.held_out]}
    points = [Curve(name, compute, np.array(losses), joined=False) for name, losses in apart.items() if losses]
    rows = [
        (
            number(run.params, 0),
            number(run.multiplier, 1),
            f"{run.compute:.3g}",
            number(run.loss, 4),
            "" if run.error is None else percentage(run.error),
        )
        for run in sorted(fitted, key=lambda run: run.compute)
    ]
    columns = [Column(name) for name in ("parameters", "tokens a parameter", _COMPUTE, _LOSS, "error over tasks")]
    return Figure(
        heading,
        "A line holds the fitted runs of M tokens a parameter. The runs that were held out stand apart, as "
        "measured and as the law predicted them.",
        curves(heading, [*lines, *points], _COMPUTE, _LOSS),
        Table("Runs that were fitted", columns, rows),
        named=False,
    )


def _curve(name: str, runs: Runs) -> Curve:
    order = np.argsort(runs.compute)
    return Curve(name, runs.compute[order], runs.loss[order])


def _parameters(found: Assessment) -> Table:
    columns = [Column("", numeric=False), Column("value"), Column(f"{LEVEL:.0%} interval")]
    rows = [
        (name, f"{getattr(found.law, name):.4g}", _between(found.intervals.get(name)))
        for name in found.law.parameters()
    ]
    return Table(f"The {found.law.kind} law", columns, rows)


def _predictions(found: Assessment) -> Table:
    names: Sequence[str] = list(found.held_out[0].baselines) if found.held_out else []
    columns = [Column(name) for name in ("parameters", "tokens a parameter", "measured", "predicted")]
    columns += [Column(f"{LEVEL:.0%} interval"), *(Column(f"error, {name}") for name in ("law", *names))]
    ascending = sorted(found.held_out, key=lambda row: row.run.compute)
    return Table(
        f"Predicted {found.law.target} of the held-out runs", columns, [_prediction(row, names) for row in ascending]
    )


def _prediction(row: Prediction, names: Sequence[str]) -> tuple[str, ...]:
    errors = [row.relative_error, *(row.baseline_errors[name] for name in names)]
    return (
        number(row.run.params, 0),
        number(row.run.multiplier, 1),
        number(row.measured, 4),
        number(row.predicted, 4),
        _between(row.interval),
        *(percentage(one, 2) for one in errors),
    )


def _between(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
