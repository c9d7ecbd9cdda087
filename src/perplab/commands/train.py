"""`perplab train`."""

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perplab.errors import PerplabError
from perplab.training.config import TrainConfig

_TEXTS = {"heldout_bits_per_byte": "held-out", "old_bits_per_byte": "old text's"}


def train(
    *,
    out: Path,
    corpus: str = "builtin:all",
    heldout: str | None = None,
    tokenizer: str | None = None,
    parent: Annotated[str | None, Parameter(name="--from")] = None,
    replay_from: str | None = None,
    old: str | None = None,
    html: Path | None = None,
    beside: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    progress: bool = True,
) -> None:
    """Train a model from text, or continue the run in OUT.

    The finished model lies in OUT in the layout of transformers. Press Ctrl-C to stop after the step under way; the
    same command continues. Under torchrun the work is shared by its processes.

    With --from a finished model is trained further, and with --old or --replay-from it is measured what that costs the
    text it was trained on before: from before the first step, and often at the beginning, where most is forgotten.

    Args:
        out: Folder of the run and of the finished model.
        corpus: Text: builtin:NAME, a file or folder, or hf:DATASET.
        heldout: Other text to measure on; by default a twentieth of the corpus is held out.
        tokenizer: Folder or hub id of a tokenizer; by default one is trained on the corpus.
        parent: Folder or hub id of a causal language model, or pocket: train its weights further.
        replay_from: Old text that takes --replay of every batch: as --corpus, or self for text that the model makes up.
        old: Old text whose held-out side tells what is forgotten; by default that of --replay-from.
        html: File to write a page to: what old and new text cost over the run.
        beside: Folders of finished runs to set beside this one on the page.
        config: The run's settings.
        progress: Show a progress bar.
    """
    from perplab.training import TrainingInterrupted
    from perplab.training import train as run

    _check_page(html, beside, old or replay_from)
    try:
        model = run(
            corpus,
            out,
            config or TrainConfig(),
            heldout=heldout,
            replay=replay_from,
            old=old,
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
        kind, _, domain = name.partition("/")
        if kind in _TEXTS:
            print(f"  {_TEXTS[kind]} bits per byte, {domain}: {value:.4f}")
    if old or replay_from:
        _tell_forgetting(out, html, beside)


def _check_page(html: Path | None, beside: tuple[Path, ...], old: str | None) -> None:
    """Refuse a page that nothing could stand on before the run, not after it."""
    if html and not old:
        raise PerplabError("the page is about old text, and there is none", "name it with --old or --replay-from")
    if beside and not html:
        raise PerplabError("other runs are set beside this one on a page, and there is none", "name it with --html")


def _tell_forgetting(out: Path, html: Path | None, beside: tuple[Path, ...]) -> None:
    from perplab.training.forgetting import forgetting_report

    report = forgetting_report(out)
    for side in ("new", "old"):
        last = report.course(side).last
        interval = f" {last.difference.interval:+.4f}" if last.difference else ""
        print(f"  {side} text since the start: {last.change:+.4f} nats a token{interval}")
    if html:
        from perplab.report import report as page_of
        from perplab.report import write
        from perplab.report.forgetting_section import forgetting_section

        write(page_of([], studies=[forgetting_section([report, *map(forgetting_report, beside)])]), html)
        print(html)
