"""`perplab claims list | run | report`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from perplab import claims
from perplab.claims.page import COLUMNS, cells, circumstances
from perplab.claims.results import Result, latest_results

app = App(name="claims", help="Say what papers claim and what came out here.")

Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command(name="list")
def list_papers(*, as_json: Json = False) -> None:
    """List the papers whose claims can be measured, and what was measured so far.

    Args:
        as_json: Print one JSON object a paper.
    """
    papers = [_overview(claims.find_paper(name)) for name in claims.paper_names()]
    if as_json:
        for paper in papers:
            print(json.dumps(paper))
        return
    table = Table("name", "paper", "claims", "measured at")
    for paper in papers:
        table.add_row(
            paper["name"], f"{paper['title']}\n{paper['reference']}", str(len(paper["claims"])), paper["scale"]
        )
    Console().print(table)


@app.command
def run(
    *names: str,
    scale: claims.Scale = "pocket",
    seeds: int = 3,
    data_dir: Path | None = None,
    as_json: Json = False,
) -> None:
    """Measure the claims of the named papers, or of all, and print them beside the papers' figures.

    Results are kept: what this code has measured is not measured again, and an interrupted run continues.

    Args:
        names: Papers, as perplab claims list names them.
        scale: How large: smoke takes seconds, pocket minutes on two cores, gpu needs an accelerator.
        seeds: Repetitions, where the seed changes anything.
        data_dir: Folder of third-party data, with which some papers have more to measure.
        as_json: Print one JSON object a paper.
    """
    for name in names or claims.paper_names():
        paper = claims.find_paper(name)
        results = claims.run_paper(paper, scale, seeds, data_dir, progress=not as_json)
        rows = claims.rows_of(paper, scale, results)
        if as_json:
            print(json.dumps({"paper": name, "claims": [asdict(row) for row in rows], "figures": _figures(results)}))
        else:
            _print(paper, rows, data_dir)


@app.command
def report(*, out: Path = Path("docs/claims.md")) -> None:
    """Write a page of every measured claim from the kept results.

    Args:
        out: File to write.
    """
    count = claims.write_page(out)
    print(f"{out}: {count} claims")


def _overview(paper: claims.Paper) -> dict[str, Any]:
    latest = latest_results(paper)
    return {
        "name": paper.name,
        "title": paper.title,
        "reference": paper.reference,
        "claims": [claim.statement for claim in paper.claims],
        "data": paper.data,
        "scale": latest[0] if latest else "",
    }


def _figures(results: list[Result]) -> dict[str, list[float]]:
    """Every figure of every seed."""
    return {name: [result.figures[name] for result in results] for name in results[0].figures}


def _print(paper: claims.Paper, rows: list[claims.Row], data_dir: Path | None) -> None:
    console = Console(highlight=False)
    told = [asdict(row) for row in rows]
    console.print(paper.title, style="bold", soft_wrap=True)
    table = Table(*COLUMNS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in told:
        table.add_row(*cells(row))
    console.print(table)
    console.print(circumstances(told), soft_wrap=True)
    if paper.data and data_dir is None and any(row.verdict == "not measured" for row in rows):
        console.print(f"more can be measured with --data-dir FOLDER that holds {paper.data}", soft_wrap=True)
