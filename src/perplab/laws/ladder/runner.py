"""Running a ladder: what is missing is trained, and every finished run is a row of `OUT/runs.jsonl`.

- `OUT/run/` holds the tokenizer and what all runs share; another corpus, setting or set of held-out cells is refused
  there. The grid may grow: cells that are done are not made again, and a cell that was cut off goes on where it was.
- `OUT/cells/NAME/` is the run of a cell. `runs.jsonl` holds the rows of the finished cells in the order of the grid, is
  written anew whenever one ends, and can be read by every verb of `perplab scaling`.
- One thread a cell: the same ladder gives the same rows, but for the seconds, however many cells are made at once.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perplab.artifacts import atomic_file, read_json
from perplab.errors import PerplabError
from perplab.laws.ladder.config import LadderConfig
from perplab.laws.ladder.measuring import CellWork, TaskErrors
from perplab.laws.ladder.planning import available_memory, plan_runs, shared_settings
from perplab.laws.ladder.progress import LadderProgress
from perplab.laws.ladder.workers import make_cells
from perplab.laws.run_files import read_runs
from perplab.laws.runs import Runs
from perplab.text import Corpus, token_store, tokenizer_fingerprint
from perplab.training.data import Splits, tokenizer_of_run
from perplab.training.distribution import Processes
from perplab.training.presets import vocabulary_size
from perplab.training.run_folder import RunFolder


@dataclass(frozen=True)
class Ladder:
    """A finished ladder.

    Attributes:
        fitted: the runs for a law.
        held_out: the runs it is tested on.
        rows: of both, as they stand in `runs.jsonl`.
    """

    fitted: Runs
    held_out: Runs
    rows: tuple[dict[str, Any], ...]


def run_ladder(
    corpus: Corpus | str,
    out: str | os.PathLike[str],
    config: LadderConfig | None = None,
    *,
    heldout: Corpus | str | None = None,
    tokenizer: str | None = None,
    tasks: TaskErrors | None = None,
    progress: bool = True,
) -> Ladder:
    """Train and measure the cells of a ladder, or go on with the ladder in `out`.

    Cells run in processes of their own; a script that calls this needs the usual guard `if __name__ == "__main__"`.

    Args:
        corpus: the text; its held-out side measures the runs.
        out: folder of the ladder.
        config: the grid and its settings.
        heldout: other held-out text; all of `corpus` is then trained on.
        tokenizer: folder or hub id of a tokenizer; by default one is trained on the text.
        tasks: what else is measured; their mean is the error of a run.
        progress: whether to show a progress bar on standard error.

    Raises:
        PerplabError: the grid cannot be meant, `out` belongs to another ladder or is in use, or a cell failed; the
            other cells are then finished and kept.
        TrainingInterrupted: somebody pressed Ctrl-C; the same call continues.
    """
    config = config or LadderConfig()
    out = Path(out)
    alone = Processes(0, 1, torch.device("cpu"))
    folder = RunFolder(out, alone)
    with folder.alone():
        splits = Splits.of(corpus, heldout)
        words = tokenizer_of_run(folder.path, tokenizer, splits.train, vocabulary_size(config.training), alone)
        measured_on = splits.heldout.limited(config.heldout_bytes)
        settings = shared_settings(config.training) | {
            "train": splits.train.fingerprint,
            "measured on": measured_on.fingerprint,
            "tokenizer": tokenizer_fingerprint(words),
            "tasks": None if tasks is None else tasks.name,
            "held_out": sorted(config.held_out),
        }
        folder.remember(json.loads(json.dumps(settings)))
        corpus_tokens = len(token_store(splits.train, words, progress=progress).tokens)
        works = [
            CellWork(
                planned=planned,
                folder=out / "cells" / planned.cell.name,
                splits=splits,
                measured_on=measured_on,
                tokenizer=tokenizer or str(folder.path / "tokenizer"),
                corpus_tokens=corpus_tokens,
                tasks=tasks,
            )
            for planned in plan_runs(config, words, corpus_tokens)
        ]
        return _run(works, out / "runs.jsonl", config.workers or _cores(), progress)


def _run(works: Sequence[CellWork], log: Path, workers: int, progress: bool) -> Ladder:
    with LadderProgress(sum(work.planned.compute for work in works), progress) as bar:
        finished: dict[str, dict[str, Any]] = {}

        def watch(at_work: Sequence[CellWork]) -> None:
            ended = [work for work in works if work.planned.cell.name not in finished and work.row.exists()]
            for work in ended:
                finished[work.planned.cell.name] = read_json(work.row, f"delete {work.row}")
                bar.finished(finished[work.planned.cell.name])
            if ended:
                _write_rows(log, [finished[name] for work in works if (name := work.planned.cell.name) in finished])
            done = sum(work.planned.compute for work in works if work.planned.cell.name in finished)
            bar.show(done, [work for work in at_work if work.planned.cell.name not in finished])

        watch(())
        missing = [work for work in works if work.planned.cell.name not in finished]
        failures = make_cells(missing, workers, available_memory(), watch)
    if failures:
        told = ", ".join(f"{name} failed ({why})" for name, why in sorted(failures.items()))
        raise PerplabError(
            f"{told}; {len(finished)} of {len(works)} cells are finished and kept",
            "mend it, and run the same ladder again",
        )
    rows = [finished[work.planned.cell.name] for work in works]
    known = read_runs(log)
    held_out = [run for run, row in zip(known, rows, strict=True) if row["held_out"]]
    fitted = [run for run, row in zip(known, rows, strict=True) if not row["held_out"]]
    return Ladder(Runs(fitted), Runs(held_out), tuple(rows))


def _write_rows(log: Path, rows: Sequence[dict[str, Any]]) -> None:
    with atomic_file(log) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
