"""A law and its trials as they are read in a terminal and in JSON, and what else `perplab scaling` prints."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console

from perplab import laws
from perplab.commands.tables import right_aligned
from perplab.laws.assessment import LEVEL


def assessment_figures(found: laws.Assessment) -> dict[str, Any]:
    """Everything as plain JSON values."""
    return {
        "parameters": {
            name: {"value": getattr(found.law, name), "interval": found.intervals.get(name)}
            for name in found.law.parameters()
        },
        "left_out": [None if np.isnan(error) else float(error) for error in found.left_out],
        "held_out": [
            {
                "params": row.run.params,
                "tokens": row.run.tokens,
                "multiplier": row.run.multiplier,
                "measured": row.measured,
                "predicted": row.predicted,
                "interval": row.interval,
                "relative_error": row.relative_error,
                "baselines": row.baseline_errors,
            }
            for row in found.held_out
        ],
        "mean_errors": found.mean_errors,
    }


def print_assessment(console: Console, found: laws.Assessment) -> None:
    """Parameters, what the law misses of each fitted run, and the runs that were not fitted beside the baselines."""
    table = right_aligned("parameter", "value", f"{LEVEL:.0%} interval")
    for name in found.law.parameters():
        table.add_row(name, f"{getattr(found.law, name):.6g}", value_range(found.intervals.get(name), ".4g"))
    console.print(table)
    left_out = found.left_out[np.isfinite(found.left_out)]
    if len(left_out):
        console.print(
            f"{len(left_out)} runs, each from the others: error {left_out.mean():.2%}, worst {left_out.max():.2%}"
        )
    if not found.held_out:
        return
    names = list(found.held_out[0].baselines)
    columns = ("params", "D/N", "measured", f"predicted\n({LEVEL:.0%} interval)", "error")
    headings = (name.replace(" ", "\n") for name in names)
    table = right_aligned(*columns, *headings, title=f"{found.law.target} of runs that were not fitted")
    for row in sorted(found.held_out, key=lambda row: row.run.compute):
        predicted = f"{row.predicted:.4f}\n{value_range(row.interval, '.4f')}".rstrip()
        errors = [row.relative_error, *(row.baseline_errors[name] for name in names)]
        sizes = count(row.run.params), count(row.run.multiplier)
        table.add_row(*sizes, f"{row.measured:.4f}", predicted, *(f"{error:.2%}" for error in errors))
    console.print(table)
    means = ", ".join(f"{name} {error:.2%}" for name, error in found.mean_errors.items())
    console.print(f"mean error: {means}", soft_wrap=True)


def count(value: float) -> str:
    """A large number with its unit."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1e15:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if value < 1e15 else f"{value:.2e}"


def value_range(interval: tuple[float, float] | None, form: str) -> str:
    """An interval in words; empty where there is none."""
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""


@contextmanager
def warnings_told() -> Iterator[None]:
    """Each `LawWarning` once, as a line on standard error, when it is given."""
    told = set()

    def tell(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            print(f"perplab: warning: {message}", file=sys.stderr)
        told.add(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", laws.LawWarning)
        warnings.showwarning = tell
        yield
