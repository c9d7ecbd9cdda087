"""`perplab lineage`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from perplab.errors import PerplabError
from perplab.models.lineage import FILE_NAME, Lineage
from perplab.models.shipped import POCKET, pocket_folder


def lineage(model: str, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Say how MODEL was made: each step from the first model to this one.

    Args:
        model: A model's folder, or pocket.
        as_json: Print the record as JSON.
    """
    folder = pocket_folder() if model == POCKET else Path(model)
    if not folder.is_dir():
        raise PerplabError(f"{folder} is not a folder", "name the folder a model was saved to")
    record = Lineage.read(folder)
    if record is None:
        raise PerplabError(f"{folder} has no {FILE_NAME}", "name a model that perplab made")
    if as_json:
        print((folder / FILE_NAME).read_text(encoding="utf-8"), end="")
        return
    console = Console(highlight=False)
    for number, step in enumerate(record.history, start=1):
        console.print(f"[bold]{number}. {step.verb}[/bold]", *_described(step), sep="\n   ", soft_wrap=True)


def _described(step: Lineage) -> Iterator[str]:
    yield f"at {step.created}" + ("" if step.seed is None else f", seed {step.seed}")
    if step.parent is not None:
        weights = f" (weights {step.parent.fingerprint[:12]})" if step.parent.fingerprint else ""
        yield f"from {step.parent.name}{weights}"
    yield "with " + ", ".join(f"{name} {version}" for name, version in step.versions.items())
    yield f"on {step.machine.cores} cores of {step.machine.cpu}"
    yield "settings:"
    yield from (escape(f"  {name} = {json.dumps(value)}") for name, value in step.config.items())
    yield "figures:"
    yield from (escape(f"  {name} = {value:.6g}") for name, value in step.figures.items())
