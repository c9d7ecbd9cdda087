"""The section of a ladder: runs that were fitted, runs that were predicted, and what the law had to beat.

Decisions:
- Losses stand over the logarithm of compute; the shape of a point tells its multiplier. Runs that were held out are
  hollow circles, and what the law said of them stands beside.
- An error of prediction is never shown without those of the baselines.
"""

import math
from collections.abc import Sequence

from perplab.laws import Assessment, Run, Runs
from perplab.laws.assessment import LEVEL, Prediction
from perplab.report import plots as draw
from perplab.report.axes import MARKS
from perplab.report.parts import Column, Figure, Section, Table, number, percentage

_COMPUTE = "training compute 6ND, FLOPs"
_LOSS = "nats a token"
_SIGNS = list(MARKS)
_MEASURED, _PREDICTED = len(_SIGNS) - 1, len(_SIGNS) - 2
_SAYS = "predicted, "


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
    shown = [_point(run, run.loss, group) for group, runs in enumerate(fitted.by_multiplier().values()) for run in runs]
    for row in loss.held_out:
        shown += [
            _point(row.run, row.measured, _MEASURED, "held out, "),
            _point(row.run, row.predicted, _PREDICTED, _SAYS),
        ]
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
        "The shape of a point and the number beside it tell the tokens per parameter. "
        f"{_SIGNS[_MEASURED]} held out, as measured; {_SIGNS[_PREDICTED]} as the law predicted it.",
        draw.scatter(heading, shown, f"power of ten of {_COMPUTE}", _LOSS),
        Table("Runs that were fitted", columns, rows),
        named=False,
    )


def _point(run: Run, loss: float, mark: int, what: str = "") -> draw.Point:
    label = "" if what == _SAYS else f"{run.multiplier:.3g}"
    title = f"{what}{run.params:,} parameters, {run.multiplier:.3g} tokens each: {loss:.4f}"
    return draw.Point(math.log10(run.compute), loss, label, title, mark)


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
