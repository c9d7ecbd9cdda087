"""Training one cell and measuring what came of it, in whatever process it runs.

The cell's folder holds the run as `train` leaves it, and `row.json` once it is measured: with that file a cell is done.
The loss is that of the package's own perplexity, each held-out document alone, with an interval by bootstrap.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from perplab.artifacts import write_json
from perplab.laws.ladder.planning import PlannedRun
from perplab.laws.runs import Run
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.scoring.perplexity import perplexity
from perplab.text import Corpus, tokenizer_fingerprint
from perplab.training import train
from perplab.training.data import Splits


class TaskErrors(Protocol):
    """A suite of tasks. Other processes ask it as well, so it has to be picklable."""

    @property
    def name(self) -> str:
        """What is asked: another suite has another name."""

    def __call__(self, language_model: LanguageModel, /) -> Mapping[str, float]:
        """Top-1 error on each task, from 0 to 1."""


@dataclass(frozen=True)
class CellWork:
    """All that a process needs to make one cell.

    Attributes:
        planned: the run.
        folder: of the cell.
        splits: what it is trained on, and what the trainer measures it on.
        measured_on: what the ladder measures it on.
        tokenizer: folder or hub id.
        corpus_tokens: tokens of one epoch.
        tasks: what else is measured.
    """

    planned: PlannedRun
    folder: Path
    splits: Splits
    measured_on: Corpus
    tokenizer: str
    corpus_tokens: int
    tasks: TaskErrors | None

    @property
    def row(self) -> Path:
        """The file that says that the cell is done, and how."""
        return self.folder / "row.json"

    @property
    def diary(self) -> Path:
        """Where the trainer writes down its steps."""
        return self.folder / "run" / "metrics.jsonl"


def make_cell(work: CellWork) -> None:
    """Train the cell, or go on with it, measure it, and write its row.

    Raises:
        PerplabError: whatever training, scoring or the tasks refuse.
        TrainingInterrupted: the process was asked to stop; the same call continues.
    """
    planned, splits = work.planned, work.splits
    language_model = train(
        splits.train, work.folder, planned.config, heldout=splits.heldout, tokenizer=work.tokenizer, progress=False
    )
    started = time.perf_counter()
    cost = perplexity(score(language_model, work.measured_on))
    errors = {} if work.tasks is None else dict(work.tasks(language_model))
    measuring = time.perf_counter() - started
    run = Run.of_model(
        language_model.model,
        tokens=planned.tokens,
        loss=cost.nats / cost.num_tokens,
        error=sum(errors.values()) / len(errors) if errors else None,
        corpus=splits.train.spec,
        tokenizer=tokenizer_fingerprint(language_model.tokenizer),
        seed=planned.cell.seed,
        corpus_tokens=work.corpus_tokens,
        scheduled_tokens=planned.tokens,
    )
    figures = language_model.lineage.figures if language_model.lineage else {}
    interval = cost.interval and [math.log(end) for end in (cost.interval.low, cost.interval.high)]
    row: dict[str, Any] = {
        "cell": planned.cell.name,
        "held_out": planned.cell.held_out,
        **asdict(run),
        "multiplier": run.multiplier,
        "compute": run.compute,
        "loss_interval": interval,
        "bits_per_byte": cost.bits_per_byte,
        "errors": errors,
        "training_seconds": figures.get("training_seconds", 0.0),
        "measuring_seconds": round(measuring, 1),
    }
    write_json(work.row, row)
