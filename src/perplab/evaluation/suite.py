"""Running the built-in tasks: how often a model takes the choice that came.

Decisions:
- A model takes the choice that costs least, in nats or, for choices of several words, in nats a byte.
- Chance is what a guess that reads nothing gets: one over the number of choices, or, where every item offers the same
  choices, the share of the commonest answer.
- The interval comes from resampling documents, because items of one document are not independent.
- At most `MOST_DOCUMENTS` documents are kept, drawn evenly from the whole corpus, so memory does not grow with it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from random import Random

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.evaluation.items import Task, TaskItem
from perplab.evaluation.tasks import TASKS
from perplab.models import LanguageModel
from perplab.scoring.bootstrap import Interval, bootstrap_ratio
from perplab.scoring.choices import score_choices
from perplab.text import Document

MOST_DOCUMENTS = 2000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which tasks, and how many items.

    Raises:
        PerplabError: a task is unknown, or the limit is below 1.
    """

    tasks: tuple[str, ...] | None = None
    """Names of built-in tasks; None for every one that the documents give items for."""
    limit: int = 400
    """Items a task, at most."""
    seed: int = 0
    """Same seed and documents, same items."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        unknown = [name for name in self.tasks or () if name not in TASKS]
        if unknown:
            raise PerplabError(f"unknown task {unknown[0]!r}", f"choose among {', '.join(TASKS)}")
        if self.tasks == ():
            raise PerplabError("no task is named", f"choose among {', '.join(TASKS)}")
        if self.limit < 1:
            raise PerplabError(f"a limit of {self.limit} items", "give 1 or more")


@dataclass(frozen=True, eq=False)
class TaskResult:
    """How a model did on a task.

    Attributes:
        name: of the task.
        items: what was asked.
        correct: (items,) whether the model took the choice that came.
    """

    name: str
    items: tuple[TaskItem, ...]
    correct: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of the items that are right."""
        return float(self.correct.mean())

    @property
    def chance(self) -> float:
        """Accuracy of the best guess that reads no context."""
        if len({frozenset(item.choices) for item in self.items}) == 1:
            answers = Counter(item.choices[item.answer] for item in self.items)
            return max(answers.values()) / len(self.items)
        return float(np.mean([1 / len(item.choices) for item in self.items]))

    @property
    def documents(self) -> list[str]:
        """Name of each item's document: the clusters of the interval."""
        return [item.document for item in self.items]

    @cached_property
    def interval(self) -> Interval | None:
        """Where the accuracy lies at 95 %; None where all items are from one document."""
        _, document = np.unique(self.documents, return_inverse=True)
        if document.max() == 0:
            return None
        right, asked = np.bincount(document, weights=self.correct), np.bincount(document)
        return bootstrap_ratio(right, asked, transform=lambda share: min(max(share, 0.0), 1.0))


def evaluate(
    language_model: LanguageModel,
    documents: Iterable[Document],
    config: EvaluateConfig | None = None,
    *,
    watch: Callable[[str, int, int], None] | None = None,
) -> list[TaskResult]:
    """Run built-in tasks.

    Args:
        language_model: the model and its tokenizer.
        documents: where the items come from; documents that the model was not trained on.
        config: which tasks, and how many items.
        watch: called after each item with the task's name, the items done and their number.

    Raises:
        PerplabError: the documents give no item for a task that was named, or for none at all, or a cost is not finite.
    """
    config = config or EvaluateConfig()
    chosen = _sampled(documents, config.seed)
    results = []
    for name in config.tasks or TASKS:
        items = tuple(islice(TASKS[name].items(chosen, config.seed), config.limit))
        if items:
            results.append(TaskResult(name, items, _taken(language_model, TASKS[name], items, watch)))
        elif config.tasks is not None:
            raise PerplabError(f"the documents give no item for {name}", "name a larger corpus, or other tasks")
    if not results:
        raise PerplabError("the documents give no item for any task", "name a larger corpus")
    return results


def _taken(
    language_model: LanguageModel,
    task: Task,
    items: Sequence[TaskItem],
    watch: Callable[[str, int, int], None] | None,
) -> npt.NDArray[np.bool_]:
    correct = np.zeros(len(items), dtype=bool)
    asked = ((item.context, item.choices) for item in items)
    for index, costs in enumerate(score_choices(language_model, asked)):
        cheapest = np.argmin(costs.nll_per_byte if task.by_byte else costs.nll)
        correct[index] = cheapest == items[index].answer
        if watch:
            watch(task.name, index + 1, len(items))
    return correct


def _sampled(documents: Iterable[Document], seed: int) -> list[Document]:
    """An even sample of the documents, in random order."""
    random = Random(seed)
    kept: list[Document] = []
    for number, document in enumerate(documents):
        if number < MOST_DOCUMENTS:
            kept.append(document)
        elif (place := random.randrange(number + 1)) < MOST_DOCUMENTS:
            kept[place] = document
    random.shuffle(kept)
    return kept
