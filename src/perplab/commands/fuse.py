"""`perplab fuse`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from perplab.commands.progress import stage_bar
from perplab.compression.fusion.config import FuseConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


def fuse(
    model: str,
    /,
    *,
    out: Path,
    calibration: str = "builtin:all",
    config: Annotated[FuseConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Write a model of fewer blocks than MODEL to OUT, in the layout of transformers.

    Press Ctrl-C to stop; the same command continues at the removal it was in.

    Args:
        model: Folder or hub id of a causal language model, or pocket.
        out: Folder for the smaller model.
        calibration: Text that chooses blocks and trains their neighbours: builtin:NAME, a file or folder, or
            hf:DATASET. Its held-out side is not read.
        config: Method, rate and settings.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        progress: Show a progress bar.
        as_json: Print one JSON object.
    """
    from perplab.compression.fusion.fuse import fuse as run
    from perplab.models import load
    from perplab.text import open_corpus

    language_model = load(model, device=device, dtype=dtype)
    with stage_bar(progress) as watch:
        smaller = run(language_model, open_corpus(calibration, "train"), config, out=out, watch=watch)
    figures = smaller.lineage.figures if smaller.lineage else {}
    if as_json:
        print(json.dumps({"model": model, "out": str(out), "calibration": calibration, "figures": dict(figures)}))
        return
    before, after = (figures[name] / 1e6 for name in ("parameters before", "parameters"))
    print(f"{out}: {figures['blocks']} of {figures['blocks before']} blocks, {after:.1f} of {before:.1f} M parameters")
    Console(highlight=False).print(_table(figures))


def _table(figures: "Mapping[str, float]") -> Table:
    """What was measured on the way, but for the scores of blocks that stayed."""
    table = Table("figure", "value")
    table.columns[1].justify = "right"
    for name, value in figures.items():
        if not name.startswith(("blocks", "parameters")) and "score of block" not in name:
            table.add_row(name, f"{value:.4g}")
    return table
