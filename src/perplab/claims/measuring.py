"""`python -m perplab.claims.measuring MODULE SCALE SEED FILE [DATA]`: measure one seed in a process of its own.

The result is written by this process, so that a seed which finishes after its runner was killed is not lost.
"""

import math
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import cast

from perplab.claims.claim import Paper, Scale
from perplab.claims.results import Result, code_key
from perplab.errors import PerplabError
from perplab.models.lineage import Machine


def measure_seed(paper: Paper, scale: Scale, seed: int, data: Path | None) -> Result:
    """Measure a paper's figures once.

    Raises:
        PerplabError: a figure is not finite, or the measuring itself raises it.
    """
    code = code_key(paper)
    started = time.perf_counter()
    figures = {name: float(value) for name, value in paper.measure(scale, seed, data).items()}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise PerplabError(f"the figure {name!r} is {value}", "look for what diverged")
    machine = Machine.current()
    return Result(
        seed=seed,
        figures=figures,
        seconds=time.perf_counter() - started,
        machine=f"{machine.cores} cores of {machine.cpu}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code,
    )


def _main(module: str, scale: str, seed: str, file: str, data: str | None = None) -> None:
    paper: Paper = import_module(module).PAPER
    try:
        measure_seed(paper, cast(Scale, scale), int(seed), Path(data) if data else None).write(Path(file))
    except PerplabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main(*sys.argv[1:])
