"""`perplab compare`."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from perplab.commands.comparison_page import comparison_page
from perplab.commands.progress import stage_bar
from perplab.evaluation.comparing import CompareConfig
from perplab.evaluation.comparing import compare as compare_models
from perplab.models import load
from perplab.text import open_corpus
from perplab.text.documents import Split


def compare(
    first: str,
    second: str,
    /,
    *,
    corpus: str = "builtin:all",
    split: Split = "heldout",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = 200_000,
    config: Annotated[CompareConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say what SECOND does worse or better than FIRST, on the same text and tasks, and at what price.

    Args:
        first: Model to measure against: folder or hub id, or pocket.
        second: The other model.
        corpus: Text to measure on: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus; 0 reads everything.
        config: What to compare and how surely.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps each checkpoint's.
        progress: Show a progress bar.
        as_json: Print one JSON object.
    """
    base, other = (load(name, device=device, dtype=dtype) for name in (first, second))
    documents = open_corpus(corpus, split)
    documents = documents.limited(limit_bytes) if limit_bytes else documents
    with stage_bar(progress) as watch:
        found = compare_models(base, other, documents, config, watch=watch)
    if as_json:
        print(json.dumps(found.as_json() | {"corpus": corpus, "split": split}, ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False, markup=False)
    for section in comparison_page(found):
        console.print(section)
        console.print()
