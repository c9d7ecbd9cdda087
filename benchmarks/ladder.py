"""A scaling ladder: wall time of the pocket grid, and two cells at once against one.

The grid is that of the claim `scaling_ladder`: eight decoders of 6 k to 115 k parameters on a generated language, one
seed. It is trained twice from nothing, with two workers and with one, each cell on one thread. `cells, s` is what the
cells' own rows say of training and measuring together; a ratio above 1 says that two workers are quicker. On one core
no gain is possible. Goal: under 40 minutes on two cores.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from perplab.claims.scaling_ladder import ladder_of_seed

WORKERS = (2, 1)


def measure(quick: bool) -> list[dict[str, Any]]:
    scale = "smoke" if quick else "pocket"
    _run("smoke", 1)  # starts the server that all cells are forked from
    taken = {workers: _run(scale, workers) for workers in WORKERS}
    alone = taken[1]["wall, s"]
    return [row | {"ratio to one worker": alone / row["wall, s"]} for row in taken.values()]


def _run(scale: Any, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        ladder, _ = ladder_of_seed(scale, 0, Path(folder), workers=workers)
        wall = time.perf_counter() - started
    return {
        "workers": workers,
        "cells": len(ladder.rows),
        "training FLOPs": sum(row["compute"] for row in ladder.rows),
        "tokens": sum(row["tokens"] for row in ladder.rows),
        "cells, s": sum(row["training_seconds"] + row["measuring_seconds"] for row in ladder.rows),
        "wall, s": wall,
        "wall, minutes": wall / 60,
    }
