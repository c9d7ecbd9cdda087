"""Two models on the same items of the same tasks, paired.

Items are summed by document, the clusters of every interval here. The mean of tasks is a ratio of sums like the rest:
each item counts by one over the items of its task, so a task counts alike whatever it could ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perplab.evaluation.suite import TaskResult
from perplab.scoring.bootstrap import PairedDifference, resampled_ratios

MEAN = "mean of tasks"


@dataclass(frozen=True)
class TaskComparison:
    """Accuracies of two models on one task.

    Args:
        name: of the task.
        items: how many.
        chance: accuracy of the best guess that reads no context.
        first: accuracy of the first model.
        second: accuracy of the second.
        difference: second minus first, over documents; None where all items are from one document.
    """

    name: str
    items: int
    chance: float
    first: float
    second: float
    difference: PairedDifference | None


def compare_tasks(
    first: Sequence[TaskResult],
    second: Sequence[TaskResult],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> list[TaskComparison]:
    """Pair the results of two models item by item.

    Args:
        first: of the model to measure against, at least one task.
        second: of the other, on the same items.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.

    Returns:
        One for each task, and before them their mean, in which every task counts alike.
    """
    names = list(dict.fromkeys(name for result in first for name in result.documents))
    shape = len(names), len(first)
    change, items = np.zeros(shape), np.zeros(shape)
    for task, (result, other) in enumerate(zip(first, second, strict=True)):
        rows = [names.index(name) for name in result.documents]
        np.add.at(change[:, task], rows, other.correct.astype(np.float64) - result.correct)
        np.add.at(items[:, task], rows, 1.0)
    totals = items.sum(axis=0)
    of_mean = [(sums / totals).sum(axis=1, keepdims=True) for sums in (change, items)]
    ratios = resampled_ratios(
        np.hstack((of_mean[0], change)), np.hstack((of_mean[1], items)), resamples=resamples, seed=seed
    )
    chances, accuracies, others = (
        [np.mean(values), *values]
        for values in (
            [result.chance for result in first],
            [result.accuracy for result in first],
            [result.accuracy for result in second],
        )
    )
    counts = [totals.sum(), *totals]
    return [
        TaskComparison(
            name, int(count), float(chance), float(accuracy), float(other), ratio and ratio.difference(level)
        )
        for name, count, chance, accuracy, other, ratio in zip(
            [MEAN, *(result.name for result in first)], counts, chances, accuracies, others, ratios, strict=True
        )
    ]
