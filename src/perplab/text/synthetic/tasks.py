"""What every generated task has in common.

Decisions:
- A document is one example, so that a question stands where it stood in training: at the beginning of a document.
- What is held out follows the rule of every corpus, the hash of the text: a task's items are those whose text falls on
  the held-out side, which no training on the other side has seen.
- Recall is about what training said. Its documents state three things at a time and its items ask for one, so what is
  asked was learnt, but never in this text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice
from random import Random
from typing import Generic, Protocol, TypeVar

from perplab.errors import PerplabError
from perplab.text.documents import is_heldout
from perplab.text.synthetic.world import World

STATEMENTS = 3
"""Statements in a document that is to be remembered."""
_PATIENCE = 2_000
"""Draws without a new item after which there is none."""


class Item(Protocol):
    """A question with a known answer."""

    @property
    def text(self) -> str:
        """The question with its right answer."""


T = TypeVar("T", bound=Item)


class GeneratedTask(ABC, Generic[T]):
    """Examples of one skill, to train on and to ask.

    Args:
        world: what is true.

    Attributes:
        name: of the task, and of its documents' domain.
    """

    name: str

    def __init__(self, world: World) -> None:
        self.world = world

    @abstractmethod
    def item(self, random: Random) -> T:
        """A question."""

    def document(self, random: Random) -> str:
        """A text to train on."""
        return self.item(random).text

    def items(self, count: int) -> Sequence[T]:
        """`count` different questions that no training document holds; the same ones at each call.

        Raises:
            PerplabError: the world has fewer.
        """
        return self._distinct(count, lambda item: is_heldout(item.text))

    def _distinct(self, count: int, wanted: Callable[[T], bool]) -> Sequence[T]:
        random = Random(f"{self.name} items {self.world.seed}")
        found: dict[str, T] = {}
        idle = 0
        while len(found) < count:
            item = self.item(random)
            is_new = item.text not in found and wanted(item)
            idle = 0 if is_new else idle + 1
            if is_new:
                found[item.text] = item
            if idle > _PATIENCE:
                raise PerplabError(
                    f"the generated world has no {count} items of {self.name}", f"ask for {len(found)} or fewer"
                )
        return list(islice(found.values(), count))


class RecallTask(GeneratedTask[T]):
    """Statements to be remembered, asked for one at a time."""

    @abstractmethod
    def statement(self, random: Random) -> str:
        """A statement to train on."""

    def document(self, random: Random) -> str:
        """Some statements."""
        return " ".join(self.statement(random) for _ in range(STATEMENTS))

    def items(self, count: int) -> Sequence[T]:
        """`count` different questions about what training states, in a text that it does not hold.

        Raises:
            PerplabError: the world has fewer.
        """
        return self._distinct(count, lambda item: True)
