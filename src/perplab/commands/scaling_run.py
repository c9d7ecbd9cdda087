"""`perplab scaling run`: train a ladder, fit its laws, and predict the runs that were held out."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from rich.console import Console

from perplab import laws
from perplab.commands.assessment_page import assessment_figures, print_assessment, warnings_told
from perplab.errors import PerplabError
from perplab.evaluation import EvaluateConfig, evaluate
from perplab.laws.assessment import Assessment, assess, with_predicted_loss
from perplab.laws.ladder import Ladder, LadderConfig, run_ladder
from perplab.laws.points import require_identifiable, require_points
from perplab.models import LanguageModel
from perplab.text import Corpus
from perplab.training import TrainingInterrupted
from perplab.training.data import Splits

_DEFAULTS = LadderConfig()
_TRAINING = _DEFAULTS.training


@dataclass(frozen=True, kw_only=True)
class LadderFlags:
    """The grid, and what its runs share."""

    shapes: str = ",".join(_DEFAULTS.shapes)
    """Decoders of the grid, WIDTHxLAYERS with commas between them."""
    multipliers: str = "20"
    """Tokens per parameter at which every shape is trained, with commas between them."""
    extra: str = ",".join(_DEFAULTS.extra)
    """Further runs to fit, WIDTHxLAYERS@MULTIPLIER with commas between them."""
    held_out: str = ",".join(_DEFAULTS.held_out)
    """Runs that are trained to be predicted and are not fitted, written in the same way."""
    seeds: int = 1
    """Train every run once for each of so many seeds."""
    workers: int | None = None
    """Runs trained at once, on one thread each; by default one a core. Memory may allow fewer."""
    heldout_size: int = _DEFAULTS.heldout_bytes
    """Measure the loss on at most so many bytes of held-out text."""
    block_size: int = _TRAINING.block_size
    """Tokens in a row."""
    batch_tokens: int = _TRAINING.batch_tokens
    """Tokens in a step."""
    learning_rate: float = _TRAINING.learning_rate or 0.0
    """Peak learning rate of every run."""
    vocab_size: int = _TRAINING.vocab_size or 0
    """Size of the tokenizer that is trained where none is given; 257 is a token a byte."""

    @property
    def config(self) -> LadderConfig:
        """The ladder.

        Raises:
            PerplabError: a list cannot be read, or the ladder cannot be meant.
        """
        training = replace(
            _TRAINING,
            block_size=self.block_size,
            batch_tokens=self.batch_tokens,
            micro_batch_tokens=self.batch_tokens,
            learning_rate=self.learning_rate,
            vocab_size=self.vocab_size,
        )
        return LadderConfig(
            shapes=_listed(self.shapes),
            multipliers=tuple(map(_number, _listed(self.multipliers))),
            extra=_listed(self.extra),
            held_out=_listed(self.held_out),
            seeds=tuple(range(self.seeds)),
            workers=self.workers,
            heldout_bytes=self.heldout_size,
            training=training,
        )


def run(
    corpus: str,
    /,
    *,
    out: Path,
    heldout: str | None = None,
    tokenizer: str | None = None,
    flags: Annotated[LadderFlags | None, Parameter(name="*")] = None,
    tasks: str | None = None,
    limit: int = 200,
    resamples: int = 1000,
    plot: Path | None = None,
    html: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    progress: bool = True,
) -> None:
    """Train a ladder of small models on CORPUS, fit laws to it, and predict the runs that were held out.

    Finished runs are rows of OUT/runs.jsonl. Press Ctrl-C to stop after the steps under way; the same command goes on.

    Args:
        corpus: Text: builtin:NAME, a file or folder, or hf:DATASET.
        out: Folder of the ladder and of its laws.
        heldout: Other text to measure on; by default a twentieth of the corpus is held out.
        tokenizer: Folder or hub id of a tokenizer; by default one is trained on the corpus.
        flags: The grid and its settings.
        tasks: Built-in tasks with commas between them, asked about the held-out text: an error law is fitted as well.
        limit: Items a task, at most.
        resamples: Redrawings of the residuals for the intervals; 0 for none.
        plot: Picture of the law and the runs to write: .png, .svg or .pdf.
        html: Page to write.
        as_json: Print one JSON object.
        progress: Show a progress bar.
    """
    config = (flags or LadderFlags()).config
    _require_enough(config)
    splits = Splits.of(corpus, heldout)
    suite = BuiltinTasks(splits.heldout, _listed(tasks), limit) if tasks else None
    with warnings_told():
        try:
            ladder = run_ladder(
                splits.train, out, config, heldout=splits.heldout, tokenizer=tokenizer, tasks=suite, progress=progress
            )
        except TrainingInterrupted as stop:
            print(f"perplab: {stop}", file=sys.stderr)
            sys.exit(130)
        loss = assess(laws.OverTrainingLaw, ladder.fitted, ladder.held_out, resamples=resamples)
        error = _assess_error(loss, ladder, resamples) if suite else None
    loss.law.save(out / "law.json")
    if error:
        error.law.save(out / "error_law.json")
    if plot:
        laws.plot_law(loss.law, ladder.fitted, plot, ladder.held_out)
    if html:
        from perplab.report import report, write
        from perplab.report.ladder_section import ladder_section

        write(report([], studies=[ladder_section(ladder.fitted, loss, error)]), html)
    _tell(out, ladder, loss, error, as_json)


@dataclass(frozen=True)
class BuiltinTasks:
    """Built-in tasks as what a ladder measures beside the loss.

    Args:
        corpus: documents that items come from.
        tasks: names.
        limit: items a task, at most.

    Raises:
        PerplabError: a task is unknown, or the limit is below 1.
    """

    corpus: Corpus
    tasks: tuple[str, ...]
    limit: int

    def __post_init__(self) -> None:
        """Refuse before anything is trained."""
        _ = self._config

    @property
    def _config(self) -> EvaluateConfig:
        return EvaluateConfig(tasks=self.tasks, limit=self.limit)

    @property
    def name(self) -> str:
        """Tasks, items and where they come from."""
        return f"{','.join(self.tasks)}, {self.limit} items, {self.corpus.fingerprint}"

    def __call__(self, language_model: LanguageModel) -> Mapping[str, float]:
        """Share of wrong answers by task."""
        results = evaluate(language_model, self.corpus, self._config)
        return {result.name: 1 - result.accuracy for result in results}


def _assess_error(loss: Assessment, ladder: Ladder, resamples: int) -> Assessment:
    predicted = with_predicted_loss(loss.law, ladder.held_out)
    return assess(laws.DownstreamErrorLaw, ladder.fitted, predicted, resamples=resamples)


def _require_enough(config: LadderConfig) -> None:
    """Refuse a grid that no law could be fitted to, before hours are spent on it."""
    fitted = {(cell.shape, cell.multiplier) for cell in config.cells if not cell.held_out}
    # Any increasing size does: the law needs runs that differ in it, whatever it is.
    sizes = np.array([float(shape.width**2 * shape.layers) for shape, _ in fitted])
    tokens = sizes * np.array([multiplier for _, multiplier in fitted])
    require_points(4, laws.OverTrainingLaw.kind, sizes, tokens)
    require_identifiable(sizes, tokens)


def _tell(out: Path, ladder: Ladder, loss: Assessment, error: Assessment | None, as_json: bool) -> None:
    laws_found = {"loss": loss, **({"error": error} if error else {})}
    if as_json:
        told: dict[str, Any] = {"runs": str(out / "runs.jsonl"), "fitted": len(ladder.fitted)}
        print(json.dumps(told | {name: assessment_figures(found) for name, found in laws_found.items()}))
        return
    console = Console(highlight=False)
    for found in laws_found.values():
        console.print(f"{found.law.kind} law of {len(ladder.fitted)} runs", soft_wrap=True)
        print_assessment(console, found)
    console.print(f"runs and laws are in {out}", soft_wrap=True)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PerplabError(f"multiplier is {text!r}", "give numbers with commas between them, such as 20,80") from None
