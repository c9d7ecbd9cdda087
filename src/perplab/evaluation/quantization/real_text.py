"""Figures of any checkpoint on a user's own text: perplexity, the built-in tasks, tasks of lm-evaluation-harness."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perplab.evaluation.harness_tasks import evaluate_with_harness
from perplab.evaluation.quantization.measurements import Measurement
from perplab.evaluation.suite import EvaluateConfig, TaskResult, evaluate
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.text import Document

LOG_PERPLEXITY = "log perplexity"


@dataclass(frozen=True)
class TextCost:
    """The measure of what a text costs.

    Args:
        documents: the text.
        name: of the figure.
    """

    documents: Sequence[Document]
    name: str = LOG_PERPLEXITY

    def __call__(self, language_model: LanguageModel) -> list[Measurement]:
        """Nats a token, the logarithm of the perplexity; documents are the clusters.

        Raises:
            PerplabError: a cost is not finite, or the text is empty.
        """
        scores = score(language_model, self.documents)
        document = scores.tokens["document"].to_numpy()
        columns = [np.bincount(document, weights) for weights in (scores.nll, np.ones(len(document)))]
        counts = np.stack(columns, axis=1).astype(np.float64)
        told = counts[counts[:, 1] > 0]
        return [Measurement(self.name, "perplexity", "mean", told, "nats per token", best="lower")]


@dataclass(frozen=True)
class BuiltInTasks:
    """The measure of accuracy on the built-in tasks.

    Args:
        documents: what the items are from.
        config: which tasks, and how many items.
    """

    documents: Sequence[Document]
    config: EvaluateConfig

    def __call__(self, language_model: LanguageModel) -> list[Measurement]:
        """Accuracy of each task; documents are the clusters.

        Raises:
            PerplabError: the documents give no items, or a cost is not finite.
        """
        return [_accuracy(result) for result in evaluate(language_model, self.documents, self.config)]


@dataclass(frozen=True)
class HarnessTasks:
    """The measure of accuracy on tasks of lm-evaluation-harness, without intervals of their differences.

    Args:
        tasks: names, or YAML files.
        include_path: folder with further task files.
        limit: samples a task, at most.
    """

    tasks: Sequence[str]
    include_path: Path | None = None
    limit: int | None = None

    def __call__(self, language_model: LanguageModel) -> list[Measurement]:
        """Each accuracy of each task.

        Raises:
            PerplabError: lm-evaluation-harness is not installed, or a task or its data are not here.
        """
        results = evaluate_with_harness(language_model, self.tasks, include_path=self.include_path, limit=self.limit)
        return [
            Measurement(
                name=f"{result.task}: {result.metric}",
                dimension="knowledge",
                figure="mean",
                counts=np.array([[result.value * result.samples, result.samples]]),
                chance=result.chance,
            )
            for result in results
            if result.chance is not None
        ]


def _accuracy(result: TaskResult) -> Measurement:
    counts: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for document, is_right in zip(result.documents, result.correct.tolist(), strict=True):
        counts[document][0] += is_right
        counts[document][1] += 1
    rows = np.array(list(counts.values()))
    return Measurement(f"{result.name}: accuracy", "knowledge", "mean", rows, chance=result.chance)
