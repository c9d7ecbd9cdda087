"""Run benchmarks, keep their figures, and write the page that shows them.

`python benchmarks/run.py` runs all, `python benchmarks/run.py attention memory` some. Figures go to
`benchmarks/results/NAME.json` and to a table on the terminal. With `--quick`, sizes shrink until a run takes seconds:
that shows that a benchmark works, so its figures are printed and not kept. `--docs` runs nothing and writes
`docs/benchmarks.md` from the kept figures.

A benchmark is a file with a docstring, whose first line is its title, and a function `measure(quick) -> rows`, where
rows are dicts with the same keys in each: column to figure.
"""

import argparse
import ast
import importlib
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perplab.artifacts import atomic_file, read_json, write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
NAMES = (
    "scoring",
    "scoring_profile",
    "few_shot",
    "scoring_memory",
    "score_tables",
    "quantease",
    "packed_decoding",
    "quantize_memory",
    "delta_rule",
    "decoding",
    "mixers",
    "phase_rotation",
    "ngram_heads",
    "low_rank_training",
    "diffusion_sampling",
    "trace_estimators",
    "scaling_fit",
    "ladder",
    "training",
    "memory",
    "attention",
    "attention_memory",
    "block_sparse",
    "tokenising",
    "streaming",
)
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy")

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, only to see that it works")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md from the kept figures")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]}: choose from {', '.join(NAMES)}")
    if arguments.docs:
        write_page()
        return
    for name in arguments.names or NAMES:
        rows = importlib.import_module(name).measure(arguments.quick)
        print(f"{name}\n\n{markdown_table(rows)}\n", flush=True)
        if not arguments.quick:
            write_json(RESULTS / f"{name}.json", record(name, rows))


def record(name: str, rows: Rows) -> dict[str, Any]:
    """The figures with what one must know to read or repeat them."""
    from perplab.models.lineage import Machine

    return {
        "command": f"python benchmarks/run.py {name}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": asdict(Machine.current()) | {"cores_used": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "rows": rows,
    }


def write_page() -> None:
    sections = [section(name) for name in NAMES if (RESULTS / f"{name}.json").exists()]
    if not sections:
        sys.exit(f"{RESULTS} has no figures: run python benchmarks/run.py first")
    introduction = (
        "# Benchmarks\n\nBoth sides of a comparison run in turn, in one session on one machine. "
        "This page is written by `python benchmarks/run.py --docs` from `benchmarks/results/`."
    )
    with atomic_file(PAGE) as temporary:
        temporary.write_text("\n\n".join([introduction, *sections]) + "\n", encoding="utf-8")


def section(name: str) -> str:
    """One benchmark's part of the page."""
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or name
    title, _, explanation = docstring.partition("\n")
    kept = read_json(RESULTS / f"{name}.json", f"run python benchmarks/run.py {name}")
    machine, versions = kept["machine"], kept["versions"]
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    where = f"{kept['date']}, {machine['cpu']}, {machine['cores_used']} of {machine['cores']} cores; {packages}."
    parts = (
        f"## {title.rstrip('.')}",
        explanation.strip(),
        markdown_table(kept["rows"]),
        f"`{kept['command']}`",
        where,
    )
    return "\n\n".join(part for part in parts if part)


def markdown_table(rows: Rows) -> str:
    """Columns padded to one width, so that it reads as well on a terminal as on a page; numbers stand on the right."""
    header = list(rows[0])
    cells = [header, *([figure(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(value, str) for value in rows[0].values()]
    lines = [
        "| "
        + " | ".join(_aligned(cell, width, right) for cell, width, right in zip(line, widths, numeric, strict=True))
        for line in cells
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join(f"{line} |" for line in lines[:1]) + f"\n{rule}|\n" + "\n".join(f"{line} |" for line in lines[1:])


def _aligned(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def figure(value: str | float) -> str:
    """A number to three significant digits, with all digits before the point."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return str(value)


if __name__ == "__main__":
    main()
