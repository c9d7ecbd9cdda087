"""The quantization suite of `perplab evaluate`: from flags to a table, a JSON object or a page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perplab.commands.compression_flags import CompressionFlags
from perplab.commands.progress import stage_bar
from perplab.evaluation import TASKS
from perplab.evaluation.quantization.measurements import Measurement
from perplab.evaluation.quantization.proxy import ProxyCorrelation, proxy_correlation
from perplab.evaluation.quantization.real_text import LOG_PERPLEXITY, HarnessTasks
from perplab.evaluation.quantization.suite import (
    WORLD_DOCUMENTS,
    QuantizationSuiteConfig,
)
from perplab.evaluation.quantization.suite import evaluate_quantization as run
from perplab.evaluation.quantization.table import Entry, GridTable, Row, grid_table
from perplab.models import load
from perplab.text import Corpus, open_corpus
from perplab.text.documents import Split
from perplab.text.synthetic import World, world_corpus

_STARRED = 0.05
_COLUMNS = 4


def evaluate_quantization(
    model: str,
    flags: CompressionFlags,
    *,
    tasks: str | None,
    corpus: str,
    split: Split,
    include_path: Path | None,
    limit: int | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Compress a model by every method at every number of bits, and print what that cost and saved.

    Raises:
        PerplabError: a flag cannot be meant, or whatever the suite refuses.
    """
    names = None if tasks is None else tuple(dict.fromkeys(name for name in tasks.split(",") if name))
    others = tuple(name for name in names or () if name not in TASKS)
    config = QuantizationSuiteConfig(
        methods=flags.method_names,
        bits=flags.bit_widths,
        group_size=flags.group_size,
        windows=flags.windows,
        length=flags.length,
        tasks=None if names is None else tuple(name for name in names if name in TASKS),
        world=flags.world,
        timed=flags.timed,
        seed=seed,
        **({} if limit is None else {"limit": limit}),
    )
    documents = open_corpus(corpus, split)
    language_model = load(model, device=device, dtype=dtype)
    with stage_bar() as watch:
        grid = run(
            language_model,
            documents.limited(flags.limit_size) if flags.limit_size else documents,
            _calibration(flags, corpus),
            config,
            harness=HarnessTasks(others, include_path, limit) if others else None,
            folder=flags.out,
            watch=watch,
        )
    table = grid_table(grid, seed=seed)
    proxies = _proxies(table)
    if flags.report:
        from perplab.report import report, write
        from perplab.report.compression_section import compression_section

        write(report([], studies=[compression_section(table)]), flags.report)
    if as_json:
        record = table.as_json() | {"corpus": corpus, "split": split, "seed": seed}
        record["proxy"] = {name: None if found is None else _proxy_json(found) for name, found in proxies.items()}
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    console.print(*_losses(table), sep="\n")
    console.print("* differs from the reference, p < 0.05; per cent: what is left of the reference's figure")
    console.print(_savings(table))
    console.print(_proxy_table(proxies))


def _calibration(flags: CompressionFlags, corpus: str) -> Corpus:
    if flags.calibration is not None:
        return open_corpus(flags.calibration, "train")
    if flags.world is not None:
        return world_corpus(World(flags.world), WORLD_DOCUMENTS).in_split("train")
    return open_corpus(corpus, "train")


def _proxies(table: GridTable) -> dict[str, ProxyCorrelation | None]:
    """Log perplexity against every other figure over the compressed forms; None where nothing can be said."""
    found: dict[str, ProxyCorrelation | None] = {}
    for one in table.measurements:
        if one.name == LOG_PERPLEXITY:
            continue
        rows = [row for row in table.rows[1:] if row.entries[one.name].reading == "measured"]
        costs, values = ([row.entries[name].value for row in rows] for name in (LOG_PERPLEXITY, one.name))
        found[one.name] = proxy_correlation(costs, values, ["one"] * len(rows)) if len(rows) > 1 else None
    return found


def _proxy_json(found: ProxyCorrelation) -> dict[str, Any]:
    ends = None if found.interval is None else [found.interval.low, found.interval.high]
    return {"points": found.points, "pearson": found.pearson, "interval": ends, "spearman": found.spearman}


def _losses(table: GridTable) -> Iterator[Table]:
    """Models as rows and figures as columns, a few at a time: a terminal is narrow."""
    figures = table.measurements
    for start in range(0, len(figures), _COLUMNS):
        shown = Table("what was lost", *(one.name.replace(": ", ":\n") for one in figures[start : start + _COLUMNS]))
        shown.columns[0].no_wrap = True
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            cells = (_cell(row.entries[one.name], one) for one in figures[start : start + _COLUMNS])
            shown.add_row(row.cell.name, *cells)
        yield shown


def _cell(entry: Entry, measurement: Measurement) -> str:
    if entry.reading != "measured":
        return entry.reading
    star = "*" if entry.difference is not None and entry.difference.p_value < _STARRED else ""
    kept = "" if entry.retention is None or entry.difference is None else f" {entry.retention:.0%}"
    return f"{entry.value:.{1 if abs(measurement.value) >= 10 else 3}f}{star}{kept}"


def _savings(table: GridTable) -> Table:
    names = ("bits", "stored", "MB", "MB at work", "prompt/s", "new/s")
    shown = Table("what was saved", *names, "kernel")
    shown.columns[0].no_wrap = True
    for column in shown.columns[1:-1]:
        column.justify = "right"
    for row in table.rows:
        bits = row.cell.bits
        sizes = f"{bits.nominal:.2f}", f"{bits.stored:.2f}", f"{bits.checkpoint_bytes / 1e6:.2f}"
        shown.add_row(row.cell.name, *sizes, *_at_work(row))
    reference = table.rows[0].cell.speed
    if reference is not None:
        shown.caption = f"{reference.circumstances}; tokens a second; MB at work: checkpoint and what generating takes"
    return shown


def _at_work(row: Row) -> tuple[str, str, str, str]:
    speed, bits = row.cell.speed, row.cell.bits
    if speed is None:
        return "", "", "", ""
    if bits.is_simulated:
        return "", "", "", "simulated in ordinary weights"
    memory = "" if speed.peak_bytes is None else f"{(bits.checkpoint_bytes + speed.peak_bytes) / 1e6:.1f}"
    return memory, f"{speed.prompt_tokens_per_second:,.0f}", f"{speed.new_tokens_per_second:,.0f}", speed.kernel


def _proxy_table(proxies: dict[str, ProxyCorrelation | None]) -> Table:
    shown = Table("figure", "points", "r", "95 % interval", "rank r", title="log perplexity in its place")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, found in proxies.items():
        if found is None:
            shown.add_row(name, "", "no signal", "", "")
        else:
            ends = "" if found.interval is None else f"{found.interval:+.2f}"
            shown.add_row(name, str(found.points), f"{found.pearson:+.3f}", ends, f"{found.spearman:+.3f}")
    return shown
