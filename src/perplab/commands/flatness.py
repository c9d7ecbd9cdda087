"""`perplab flatness`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.progress import stage_bar
from perplab.commands.tables import right_aligned
from perplab.errors import PerplabError
from perplab.laws.flatness import Flatness, FlatnessConfig, measure_flatness, why_not_comparable
from perplab.models import load
from perplab.scoring.bootstrap import Interval
from perplab.text import open_corpus
from perplab.text.documents import Split

_MOST_MODULES = 12


def flatness(
    *models: str,
    corpus: str = "builtin:all",
    split: Split = "heldout",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = 200_000,
    config: Annotated[FlatnessConfig | None, Parameter(name="*", negative_iterable=())] = None,
    device: str = "cpu",
    html: Path | None = None,
    progress: bool = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say how flat the minimum is in which a model sits, or several models on the same text.

    Args:
        models: Folders or hub ids of causal language models, or pocket.
        corpus: Text to measure on: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus; 0 reads everything.
        config: What to measure and how surely.
        device: Where to compute, for example cpu or cuda:0.
        html: Page to write.
        progress: Show a progress bar.
        as_json: Print one JSON object.
    """
    if not models:
        raise PerplabError("no model is named", "give a folder, a hub id, or pocket")
    documents = open_corpus(corpus, split)
    documents = documents.limited(limit_bytes) if limit_bytes else documents
    with stage_bar(progress) as watch:
        found = [
            measure_flatness(load(name, device=device, dtype="float32"), documents, config, watch=watch)
            for name in models
        ]
    for other in found[1:]:
        if reason := why_not_comparable(found[0], other):
            print(f"perplab: warning: {reason}", file=sys.stderr)
    if html:
        from perplab.report import report, write
        from perplab.report.flatness_section import flatness_section

        write(report([], studies=[flatness_section(found)]), html)
    if as_json:
        told = {"corpus": corpus, "split": split, "models": [one.as_json() for one in found]}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    console.print(_summary(found))
    for one in found:
        console.print(_modules(one))
    if found[0].profile:
        console.print(_profile(found))


def _summary(found: Sequence[Flatness]) -> Table:
    table = right_aligned("", *(one.model for one in found))
    table.add_row("parameters looked at", *(f"{one.parameters:,}" for one in found))
    table.add_row("tokens predicted", *(f"{one.tokens:,}" for one in found))
    table.add_row("nats a token", *(_with(one.loss, one.loss_interval, ".4f") for one in found))
    table.add_row(f"trace ({found[0].method})", *(_with(one.trace.value, one.trace.interval, ".4g") for one in found))
    for place in range(len(found[0].spectrum.values) if found[0].spectrum else 0):
        spectra = [one.spectrum for one in found if one.spectrum]
        cells = (_with(spectrum.values[place], spectrum.intervals[place], ".4g") for spectrum in spectra)
        table.add_row(f"eigenvalue {place + 1}", *cells)
    return table


def _modules(one: Flatness) -> Table:
    table = right_aligned("module", "trace", "share", title=f"where the trace of {one.model} sits")
    parts = sorted(one.trace.by_module.items(), key=lambda part: -abs(part[1]))
    rest = sum(value for _, value in parts[_MOST_MODULES:])
    shown = parts[:_MOST_MODULES]
    if len(parts) > _MOST_MODULES:
        shown.append((f"{len(parts) - _MOST_MODULES} others", rest))
    for name, value in shown:
        table.add_row(name, f"{value:.4g}", f"{value / one.trace.value:.1%}" if one.trace.value else "-")
    return table


def _profile(found: Sequence[Flatness]) -> Table:
    table = right_aligned("distance", *(one.model for one in found), title="nats a token along random directions")
    for points in zip(*(one.profile for one in found), strict=True):
        cells = (_with(point.loss, point.interval if point.radius else None, ".4f") for point in points)
        table.add_row(f"{points[0].radius:g}", *cells)
    return table


def _with(value: float, interval: Interval | None, spec: str) -> str:
    return f"{value:{spec}} {interval:{spec}}" if interval else f"{value:{spec}}"
