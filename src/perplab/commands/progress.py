"""Bars on standard error for long work; where that is no terminal, nothing is shown."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from perplab.text import Corpus, Document


@contextmanager
def stage_bar(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in stages; gives a function of what is being done, how much is done, and how much there is."""
    with _progress(shown, TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def scoring_bar(
    documents: Corpus | Iterable[Document], what: str = "scoring", shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes of a text with tokens per second; gives a function of tokens scored and bytes read since."""
    with _progress(shown, TextColumn("{task.description}"), BarColumn(), _Speed(), TimeElapsedColumn()) as bar:
        total = documents.approximate_bytes if isinstance(documents, Corpus) else None
        task = bar.add_task(what, total=total, tokens=0)

        def watch(tokens: int, size: int) -> None:
            bar.update(task, advance=size, tokens=bar.tasks[task].fields["tokens"] + tokens)

        yield watch


class _Speed(ProgressColumn):
    """Tokens so far, and how many a second."""

    def render(self, task: Task) -> Text:
        tokens = task.fields["tokens"]
        return Text(f"{tokens:,} tokens, {tokens / max(task.elapsed or 0, 1e-9):,.0f} a second,")


def _progress(shown: bool, *columns: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    time_left = (TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *time_left, console=console, transient=True, disable=not shown or not console.is_terminal)
