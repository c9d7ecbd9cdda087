"""`perplab train`."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perplab.training.config import TrainConfig


def train(
    *,
    out: Path,
    corpus: str = "builtin:all",
    heldout: str | None = None,
    tokenizer: str | None = None,
    parent: Annotated[str | None, Parameter(name="--from")] = None,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    progress: bool = True,
) -> None:
    """Train a model from text, or continue the run in OUT.

    The finished model lies in OUT in the layout of transformers. Press Ctrl-C to stop after the step under way; the
    same command continues. Under torchrun the work is shared by its processes.

    Args:
        out: Folder of the run and of the finished model.
        corpus: Text: builtin:NAME, a file or folder, or hf:DATASET.
        heldout: Other text to measure on; by default a twentieth of the corpus is held out.
        tokenizer: Folder or hub id of a tokenizer; by default one is trained on the corpus.
        parent: Folder or hub id of a causal language model, or pocket: train its weights further.
        config: The run's settings.
        progress: Show a progress bar.
    """
    from perplab.training import TrainingInterrupted
    from perplab.training import train as run

    try:
        model = run(
            corpus,
            out,
            config or TrainConfig(),
            heldout=heldout,
            tokenizer=tokenizer,
            parent=parent,
            progress=progress,
        )
    except TrainingInterrupted as stop:
        print(f"perplab: {stop}", file=sys.stderr)
        sys.exit(130)
    if os.environ.get("RANK", "0") != "0":  # one of several processes tells
        return
    figures = model.lineage.figures if model.lineage else {}
    print(f"{out}: {figures['parameters'] / 1e6:.1f} M parameters, {figures['tokens'] / 1e6:.1f} M tokens")
    for name, value in figures.items():
        if name.startswith("heldout_bits_per_byte/"):
            print(f"  held-out bits per byte, {name.partition('/')[2]}: {value:.4f}")
