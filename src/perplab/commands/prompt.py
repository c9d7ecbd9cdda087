"""`perplab prompt`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perplab.commands.progress import stage_bar
from perplab.compression.prompts.config import PromptConfig
from perplab.compression.prompts.prompting import prompt as repair
from perplab.models import load


def prompt(
    model: str,
    /,
    *,
    out: Path,
    corpus: str = "builtin:all",
    config: Annotated[PromptConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Repair MODEL with prompts in front of its input; its weights stay as they are.

    The result is a model that every other command takes. Press Ctrl-C to stop after the step under way; the same
    command continues.

    Args:
        model: Folder or hub id of a causal language model, or pocket.
        out: Folder for the result.
        corpus: Text to train on: builtin:NAME, a file or folder, or hf:DATASET. Its training side is read.
        config: What is trained, and how.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        progress: Show a progress bar.
        as_json: Print one JSON object.
    """
    language_model = load(model, device=device, dtype=dtype)
    with stage_bar(progress) as watch:
        made = repair(language_model, corpus, config, out=out, watch=watch)
    figures = dict(made.lineage.figures) if made.lineage else {}
    if as_json:
        print(json.dumps({"out": str(out), "figures": figures}))
        return
    print(f"{out}: {figures['trained_parameters']:,.0f} parameters trained on {figures['tokens']:,.0f} tokens")
    for name in (key.removeprefix("loss_first/") for key in figures if key.startswith("loss_first/")):
        print(f"  {name}: {figures[f'loss_first/{name}']:.4f} -> {figures[f'loss_last/{name}']:.4f} nats a token")
