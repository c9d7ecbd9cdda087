"""`perplab report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from perplab.commands.progress import scoring_bar
from perplab.commands.reading import text_argument
from perplab.errors import PerplabError
from perplab.report.config import ReportConfig
from perplab.text import Corpus, Document, open_corpus
from perplab.text.documents import Split


def report(
    model: str | None = None,
    other: str | None = None,
    /,
    *,
    out: Path = Path("report.html"),
    corpus: str = "builtin:all",
    split: Split = "heldout",
    limit_bytes: Annotated[int | None, Parameter(name="--limit-size")] = 200_000,
    text: str | None = None,
    claims: Annotated[bool, Parameter(negative="")] = False,
    config: Annotated[ReportConfig | None, Parameter(name="*")] = None,
    device: str = "cpu",
    dtype: str = "auto",
    progress: bool = True,
) -> None:
    """Write a page about MODEL, or about MODEL and OTHER side by side: figures, plots, and text with every cost.

    The page is one file that needs no network; its path is printed.

    Args:
        model: Folder or hub id of a causal language model, or pocket. Without one the page holds claims alone.
        other: A second model to set beside it.
        out: File to write.
        corpus: Documents to score: builtin:NAME, a file or folder, or hf:DATASET.
        split: Side of the corpus: all, train or heldout.
        limit_bytes: Read at most so many bytes of the corpus; 0 reads everything.
        text: Score this in place of a corpus; - reads it from standard input.
        claims: Add every claim that perplab claims run has measured.
        config: What the page shows.
        device: Where to compute, for example cpu or cuda:0.
        dtype: Of the weights in memory; auto keeps each checkpoint's.
        progress: Show a progress bar.
    """
    from perplab.claims import summary
    from perplab.models import load
    from perplab.report import report as page_of
    from perplab.report import study, write

    documents = _documents(text, corpus, split, limit_bytes)
    subjects = []
    for name in filter(None, (model, other)):
        with scoring_bar(documents, f"scoring with {name}", progress) as watch:
            # A model is let go before the next is loaded.
            subjects.append(study(load(name, device=device, dtype=dtype), documents, config, watch=watch))
    rows = summary() if claims else []
    if claims and not rows:
        raise PerplabError("no claim was measured yet", "run perplab claims run NAME first")
    write(page_of(subjects, rows, config), out)
    print(out)


def _documents(text: str | None, corpus: str, split: Split, limit_bytes: int | None) -> Corpus | list[Document]:
    if text is not None:
        return [Document(text_argument(text), "text", "text")]
    documents = open_corpus(corpus, split)
    return documents.limited(limit_bytes) if limit_bytes else documents
