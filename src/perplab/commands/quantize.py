"""`perplab quantize`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.progress import stage_bar
from perplab.compression.layer_store import LayerRecord
from perplab.compression.quantize_config import UNCALIBRATED, QuantizeConfig
from perplab.compression.quantizing import quantize as quantize_model
from perplab.models import LanguageModel, load
from perplab.text import open_corpus

_MOST_ROWS = 40
"""Layers that are listed; of a larger model the worst."""


def quantize(
    model: str,
    /,
    *,
    out: Path,
    calibration: str | None = None,
    config: Annotated[QuantizeConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Round a model's weights to few bits; the folder it writes is loaded by plain transformers.

    Args:
        model: Folder or hub id, or pocket.
        out: Folder for the result; the same command continues a run that was interrupted.
        calibration: Text that shows layers their inputs: builtin:NAME, a file or folder, or hf:DATASET. By default
            builtin:all; its training side is read.
        config: Method, bits and the rest.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        progress: Show a progress bar.
        as_json: Print one JSON object.
    """
    config = config or QuantizeConfig()
    language_model = load(model, device=device, dtype=dtype)
    if calibration is None and config.method not in UNCALIBRATED:
        calibration = "builtin:all"
    documents = None if calibration is None else open_corpus(calibration, "train")
    records: list[LayerRecord] = []
    with stage_bar(progress) as watch:
        made = quantize_model(language_model, documents, config, out=out, watch=watch, log=records.append)
    figures = dict(made.lineage.figures) if made.lineage else {}
    if as_json:
        print(json.dumps({"out": str(out), "figures": figures, "layers": [asdict(record) for record in records]}))
        return
    console = Console(highlight=False, markup=False)
    console.print(_table(records))
    for record in records:
        if calibration is not None and not record.tokens:
            console.print(f"{record.path} saw no token: its weights were rounded without calibration")
    console.print(_summary(language_model, out, figures))


def _table(records: list[LayerRecord]) -> Table:
    shown = records
    if len(records) > _MOST_ROWS:
        shown = sorted(records, key=lambda record: record.relative_error or 0.0, reverse=True)[:_MOST_ROWS]
    table = Table("layer", "out x in", "bits", "error", "seconds", title="rounded layers")
    for column in table.columns[1:]:
        column.justify = "right"
    for record in shown:
        error = "" if record.relative_error is None else f"{record.relative_error:.2e}"
        shape = f"{record.shape[0]:,} x {record.shape[1]:,}"
        table.add_row(record.path, shape, f"{record.bits_per_weight:.2f}", error, f"{record.seconds:.2f}")
    if len(shown) < len(records):
        table.caption = f"the {len(shown)} worst of {len(records):,}"
    return table


def _summary(language_model: LanguageModel, out: Path, figures: dict[str, Any]) -> str:
    """One line: bits, error, sizes."""
    parts = [f"{figures['bits per weight']:.2f} bits a weight"]
    if "relative error" in figures:
        parts.append(f"mean relative error {figures['relative error']:.2e}")
    sizes = [_bytes_of(folder) for folder in (language_model.path, out) if folder is not None]
    parts.append(" -> ".join(f"{size / 1e6:,.1f} MB" for size in sizes))
    return f"{out}: {', '.join(parts)}"


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
