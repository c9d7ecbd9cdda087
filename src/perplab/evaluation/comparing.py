"""`compare`: what a second model does worse or better than a first, on the same text and tasks, and at what price.

Decisions:
- The text is read once and held: the costs of its tokens, which are held as well, take more.
- Each model reads the text in windows of its own length, because that is how it would be used; their distributions are
  compared in windows that fit both.
- Models whose vocabularies differ are compared all the same, but for their distributions; the result says why.
- A comparison with tasks is noted in a ledger, and the verdict on perplexity as a stand-in for task scores is over all
  variants noted there for the same base, text and tasks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from perplab.errors import PerplabError
from perplab.evaluation.footprint import Footprint, footprint, time_in_turn, with_peak_memory
from perplab.evaluation.ledger import ComparisonKey, Ledger, text_fingerprint
from perplab.evaluation.proxy_verdict import ProxyVerdict, VariantOutcome, proxy_verdict
from perplab.evaluation.suite import EvaluateConfig, evaluate
from perplab.evaluation.task_comparison import TaskComparison, compare_tasks
from perplab.models import LanguageModel
from perplab.models.any_order import is_any_order
from perplab.scoring import TokenScores, score
from perplab.scoring.bootstrap import PairedDifference
from perplab.scoring.comparison import ScoreComparison, compare_scores, refuse_too_few
from perplab.scoring.divergence import Divergence, divergence, vocabulary_difference
from perplab.scoring.passages import with_text
from perplab.scoring.token_classes import token_classifier
from perplab.text import Document

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `perplab compare`.

    Raises:
        PerplabError: a number is out of its range.
    """

    tasks: bool = True
    """Also compare on the built-in tasks, and judge perplexity by all variants compared so far."""
    limit: int = 400
    """Items a task, at most."""
    passages: int = 10
    """Worst passages to show, at most."""
    rounds: int = 3
    """Rounds of timing."""
    resamples: int = 10_000
    """Bootstrap resamples of documents."""
    level: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Decides the items of the tasks and the resamples."""
    ledger: Path | None = None
    """File that comparisons are noted in; by default comparisons.jsonl in the cache folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, least in (("limit", 1), ("passages", 0), ("rounds", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise PerplabError(f"{name} is {getattr(self, name)}", f"give {least} or more")
        if not 0 < self.level < 1:
            raise PerplabError(f"level is {self.level}", "give a number between 0 and 1, such as 0.95")


@dataclass(frozen=True, eq=False)
class Comparison:
    """A second model against a first.

    Attributes:
        first: name of the model measured against.
        second: name of the other.
        scores: costs of the text.
        divergence: of the distributions; None where the vocabularies differ.
        vocabulary_difference: what differs there; None where nothing does.
        tasks: mean of tasks, then each task; empty without tasks.
        footprints: what each model takes to run.
        speed_ratio: text a second of the second model, over that of the first.
        proxy: over all variants compared so far; None without tasks.
    """

    first: str
    second: str
    scores: ScoreComparison
    divergence: Divergence | None
    vocabulary_difference: str | None
    tasks: Sequence[TaskComparison]
    footprints: tuple[Footprint, Footprint]
    speed_ratio: float
    proxy: ProxyVerdict | None

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        record = asdict(self)
        record["scores"]["documents"] = self.scores.documents.to_pylist()
        return record


def compare(
    first: LanguageModel,
    second: LanguageModel,
    documents: Iterable[Document],
    config: CompareConfig | None = None,
    *,
    watch: Watch | None = None,
) -> Comparison:
    """Compare two models.

    Args:
        first: the model to measure against.
        second: the other.
        documents: text that neither was trained on, such as the held-out side of a corpus; at least two documents.
        config: what to compare and how surely.
        watch: called while work goes on with what is being done, how much of it is done, and how much there is.

    Raises:
        PerplabError: there are fewer than two documents, or they give no item for any task, or a model gives no finite
            cost or cannot choose answers, or the ledger cannot be read or written.
    """
    config = config or CompareConfig()
    watch = watch or _unwatched
    documents = list(documents)
    refuse_too_few(len(documents))
    models = first, second
    if config.tasks:
        _refuse_without_choices(models)
    ledger = Ledger(config.ledger)
    ledger.check()  # before the work, rather than after it
    draws: dict[str, Any] = {"resamples": config.resamples, "level": config.level, "seed": config.seed}
    tasks = _tasks(models, documents, config, draws, watch) if config.tasks else []
    timings = time_in_turn(models, documents, config.rounds)
    (scores, memory), (other_scores, other_memory) = (
        with_peak_memory(partial(_scores, model, documents, watch), model.model.device) for model in models
    )
    compared = compare_scores(
        scores, other_scores, classifier=token_classifier(first.tokenizer), passages=config.passages, **draws
    )
    difference = vocabulary_difference(first, second)
    told = _bytes_done("divergence", documents, watch)
    return Comparison(
        first=first.name,
        second=second.name,
        scores=replace(compared, worst_passages=with_text(compared.worst_passages, documents)),
        divergence=None if difference else divergence(first, second, documents, watch=told, **draws),
        vocabulary_difference=difference,
        tasks=tasks,
        footprints=(footprint(first, timings[0], memory), footprint(second, timings[1], other_memory)),
        speed_ratio=timings[0].seconds / timings[1].seconds,
        proxy=_proxy(models, documents, config, tasks, compared.bits_per_byte, ledger) if tasks else None,
    )


def _refuse_without_choices(models: Sequence[LanguageModel]) -> None:
    for model in models:
        if is_any_order(model.model):
            raise PerplabError(
                f"{model.name} is a masked diffusion model, which has no exact log-probability to choose answers by",
                "compare without tasks (--no-tasks)",
            )


def _tasks(
    models: tuple[LanguageModel, LanguageModel],
    documents: Sequence[Document],
    config: CompareConfig,
    draws: Mapping[str, Any],
    watch: Watch,
) -> list[TaskComparison]:
    results = []
    for model in models:
        told = partial(_task_done, model.name, watch)
        results.append(evaluate(model, documents, _task_settings(config), watch=told))
    return compare_tasks(*results, **draws)


def _task_settings(config: CompareConfig) -> EvaluateConfig:
    return EvaluateConfig(limit=config.limit, seed=config.seed)


def _proxy(
    models: tuple[LanguageModel, LanguageModel],
    documents: Sequence[Document],
    config: CompareConfig,
    tasks: Sequence[TaskComparison],
    bits_per_byte: PairedDifference,
    ledger: Ledger,
) -> ProxyVerdict:
    """Note this comparison, and judge all that are noted for the same base, text and tasks."""
    base, variant = (f"{model.fingerprint} {model.model.dtype}" for model in models)
    asked = asdict(_task_settings(config)) | {"tasks": [task.name for task in tasks]}
    key = ComparisonKey(base, text_fingerprint(documents), asked)
    scores = {task.name: task.difference for task in tasks if task.difference is not None}
    if variant != base:
        ledger.add(key, variant, VariantOutcome(models[1].name, bits_per_byte, scores))
    return proxy_verdict(ledger.outcomes(key), resamples=config.resamples, level=config.level, seed=config.seed)


def _scores(model: LanguageModel, documents: Sequence[Document], watch: Watch) -> TokenScores:
    return score(model, documents, watch=_bytes_done(f"scoring {model.name}", documents, watch))


def _bytes_done(what: str, documents: Sequence[Document], watch: Watch) -> Callable[[int, int], None]:
    """A function that takes the tokens and bytes of each document done and passes on how far that is."""
    total = sum(len(document.text.encode("utf-8")) for document in documents)
    done = 0

    def told(_: int, num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        watch(what, done, total)

    return told


def _task_done(model: str, watch: Watch, task: str, done: int, total: int) -> None:
    watch(f"{model}: {task}", done, total)


def _unwatched(what: str, done: int, total: int) -> None:
    """Nobody looks."""
