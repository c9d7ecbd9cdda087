"""`perplab explain`."""

import json
from dataclasses import asdict, replace
from typing import Annotated

from cyclopts import Parameter
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from perplab.commands.progress import stage_bar
from perplab.errors import PerplabError
from perplab.models import load
from perplab.scoring.conventions import Convention, convention_of
from perplab.scoring.explain import Explanation
from perplab.scoring.explain import explain as explain_difference
from perplab.text import open_corpus
from perplab.text.documents import Split


def explain(
    first: str,
    second: str,
    /,
    *,
    corpus: str,
    model: str = "pocket",
    split: Split = "all",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = None,
    window: int | None = None,
    stride: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say why FIRST and SECOND give two numbers for one model and one text.

    Args:
        first: Convention: perplab, lm-eval, nanochat, hf-stride, gptq or llamacpp.
        second: Convention to compare it with.
        corpus: Documents to score: builtin:NAME, a file or folder, or hf:DATASET.
        model: Folder or hub id of a causal language model, or pocket.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus.
        window: Tokens read in a window, for both conventions.
        stride: Tokens between the begins of windows, for those whose windows overlap.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps the checkpoint's.
        as_json: Print one JSON object.
    """
    pair = [_with_numbers(convention_of(name), window, stride) for name in (first, second)]
    if stride is not None and all(convention.stride is None for convention in pair):
        raise PerplabError(
            f"a stride of {stride}, where the windows of {first} and {second} do not overlap", "leave --stride out"
        )
    language_model = load(model, device=device, dtype=dtype)
    documents = open_corpus(corpus, split)
    with stage_bar() as watch:
        explanation = explain_difference(
            language_model,
            documents.limited(limit_bytes) if limit_bytes else documents,
            *pair,
            on_number=lambda done, total: watch("scoring by one convention after another", done, total),
        )
    if as_json:
        print(json.dumps({"model": model, "corpus": corpus, "split": split} | _record(explanation)))
    else:
        Console().print(_table(explanation))


def _with_numbers(convention: Convention, window: int | None, stride: int | None) -> Convention:
    return replace(convention, window=window, stride=None if convention.windows.stride is None else stride)


def _record(explanation: Explanation) -> dict[str, object]:
    steps = [asdict(step) | {"factor": step.factor} for step in explanation.steps]
    return asdict(explanation) | {"steps": steps, "log_change": explanation.log_change}


def _table(explanation: Explanation) -> Table:
    table = Table(box=SIMPLE, show_footer=True)
    table.add_column("", "all", no_wrap=True)
    table.add_column(explanation.first, explanation.first_unit)
    table.add_column(explanation.second, explanation.second_unit)
    factor = explanation.second_number / explanation.first_number
    for header, footer in (
        ("number", f"{explanation.second_number:.4f}"),
        ("factor", f"{factor:.4f}"),
        ("change of ln", f"{explanation.log_change:+.4f}"),
    ):
        table.add_column(header, footer, justify="right", no_wrap=True)
    table.add_row("", "", "", f"{explanation.first_number:.4f}", end_section=True)
    for step in explanation.steps:
        changed = step.before != step.after
        figures = (f"{step.number:.4f}", f"{step.factor:.4f}", f"{step.log_change:+.4f}") if changed else ()
        table.add_row(step.facet, step.before, step.after if changed else "the same", *figures, end_section=True)
    return table
