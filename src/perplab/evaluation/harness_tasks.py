"""Running tasks of lm-evaluation-harness from files that are here, with intervals.

Decisions:
- Nothing is fetched: a task is read from a folder, a YAML file or the installed harness, and its data from the files
  that it names or the local cache of `datasets`.
- lm-eval draws the examples, with its own default seeds, and aggregates, so values are its values.
- The interval resamples the samples of a task, also of perplexities, for which lm-eval has no error. Where a value does
  not follow from means over samples there is none.
- Chance is told for accuracies of multiple choice: the mean of one over the number of choices.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.bootstrap import Interval, bootstrap_ratio

_ACCURACIES = ("acc", "acc_norm")


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


_OF_NATS: dict[str, Callable[[float], float]] = {
    "perplexity": _exponential,
    "word_perplexity": _exponential,
    "byte_perplexity": _exponential,
    "bits_per_byte": lambda nats: nats / math.log(2),
}
"""What lm-eval makes of the mean cost of a sample, a word or a byte."""


@dataclass(frozen=True)
class HarnessResult:
    """One figure of one task.

    Attributes:
        task: its name.
        metric: name of the figure.
        filter: name of what the harness did to the answers before.
        value: the figure.
        samples: how many were asked.
        interval: where the figure lies at 95 %; None where it is not a mean over samples.
        chance: what guessing gets, for accuracies of multiple choice.
    """

    task: str
    metric: str
    filter: str
    value: float
    samples: int
    interval: Interval | None
    chance: float | None


def evaluate_with_harness(
    language_model: LanguageModel,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> list[HarnessResult]:
    """Run tasks of lm-evaluation-harness.

    Args:
        language_model: the model and its tokenizer.
        tasks: names of tasks, groups and tags, or YAML files.
        include_path: folder with further task files.
        limit: samples a task, at most.
        num_fewshot: solved examples before each question; None for the task's own number.

    Raises:
        PerplabError: lm-evaluation-harness is not installed, there is no such task, its data are not here, or a number
            cannot be meant.
    """
    if limit is not None and limit < 1:
        raise PerplabError(f"a limit of {limit} samples", "give 1 or more")
    if num_fewshot is not None and num_fewshot < 0:
        raise PerplabError(f"{num_fewshot} solved examples", "give 0 or more")
    try:
        import lm_eval
    except ImportError:
        raise PerplabError(
            f"{', '.join(tasks)} needs lm-evaluation-harness, which is not installed", "pip install 'perplab[evaluate]'"
        ) from None
    from perplab.evaluation.harness import PerplabLM

    with _offline(), _undisturbed(), _harness_errors_named(tasks):
        found = lm_eval.simple_evaluate(
            model=PerplabLM(language_model),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            task_manager=_task_manager(tasks, include_path),
        )
    return [result for task in found["samples"] for result in _results(task, found)]


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The folder's tasks alone where they are all that is asked for: reading the harness's own takes many seconds."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise PerplabError(f"{include_path} is not a folder", "name the folder that holds the tasks' YAML files")
    folder = str(include_path) if include_path is not None else None
    own = TaskManager(include_path=folder, include_defaults=False)
    if all(_knows(own, task) for task in tasks):
        return own
    whole = TaskManager(include_path=folder)
    for task in tasks:
        if not _knows(whole, task):
            raise PerplabError(
                f"there is no task {task!r}, neither built in nor in lm-evaluation-harness",
                "check the spelling, or name the folder that holds it with --include-path",
            )
    return whole


def _knows(manager: Any, task: str) -> bool:
    return task in manager.all_tasks or (task.endswith(".yaml") and Path(task).is_file())


def _results(task: str, found: dict[str, Any]) -> Iterator[HarnessResult]:
    """The figures of one task, without lm-eval's own errors."""
    for key, value in found["results"][task].items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        samples = [sample for sample in found["samples"][task] if sample["filter"] == filtered]
        yield HarnessResult(
            task=task,
            metric=metric,
            filter=filtered,
            value=float(value),
            samples=len(samples),
            interval=_interval(metric, float(value), [sample.get(metric) for sample in samples]),
            chance=_chance(metric, found["configs"][task], samples),
        )


def _interval(metric: str, value: float, values: list[Any]) -> Interval | None:
    """The interval of a figure that follows from means over samples, and None where it does not."""
    pairs = [entry if isinstance(entry, tuple | list) else (entry, 1) for entry in values]
    if len(pairs) < 2 or not all(len(pair) == 2 and isinstance(pair[0], int | float) for pair in pairs):
        return None
    sums, counts = np.array(pairs, dtype=np.float64).T
    transform = _OF_NATS.get(metric)
    if transform:
        sums = -sums
    elif sums.min() >= 0 and (sums <= counts).all():
        transform = _share
    else:
        transform = float
    if not math.isclose(transform(sums.sum() / counts.sum()), value, rel_tol=1e-6, abs_tol=1e-9):
        return None
    interval = bootstrap_ratio(sums, counts, transform=transform)
    return interval if math.isfinite(interval.high) else None


def _share(ratio: float) -> float:
    return min(max(ratio, 0.0), 1.0)


def _chance(metric: str, config: dict[str, Any], samples: list[dict[str, Any]]) -> float | None:
    if config.get("output_type") != "multiple_choice" or metric not in _ACCURACIES:
        return None
    return float(np.mean([1 / len(sample["arguments"]) for sample in samples]))


@contextmanager
def _offline() -> Iterator[None]:
    """Keep `datasets` and the hub from the network. Both read the environment once, when they are imported."""
    import datasets
    import huggingface_hub.constants

    places = ((huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"))
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, True)
    try:
        yield
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Silence lm-eval's notices, and put the global random generators back, all of which it seeds."""
    import torch

    logger = logging.getLogger("lm_eval")
    level, python_state, numpy_state = logger.level, random.getstate(), np.random.get_state()
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _harness_errors_named(tasks: Sequence[str]) -> Iterator[None]:
    """Make one line of what lm-eval and `datasets` raise for missing data and faulty tasks."""
    try:
        yield
    except PerplabError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, AssertionError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PerplabError(
            f"lm-evaluation-harness cannot run {', '.join(tasks)} offline ({type(error).__name__}: {first})",
            "correct the task's file, or bring its data set into the local cache while connected",
        ) from error
