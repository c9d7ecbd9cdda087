"""A generated world as a corpus: a domain for each task, as many documents of each."""

from collections.abc import Iterator
from random import Random
from typing import Any

from perplab.errors import PerplabError
from perplab.text.corpus import Corpus
from perplab.text.documents import Document
from perplab.text.synthetic.entailment import Entailment
from perplab.text.synthetic.instructions import Instructions
from perplab.text.synthetic.prejudice import Groups
from perplab.text.synthetic.recall import Facts, FactsInSecondLanguage, Truth
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import World
from perplab.text.synthetic.writing import Arithmetic, Summary, Translation

_FORMAT_VERSION = 1
_TASKS: tuple[type[GeneratedTask[Any]], ...] = (
    *(Facts, FactsInSecondLanguage, Translation, Summary, Arithmetic, Entailment, Instructions, Truth, Groups),
)


def generated_tasks(world: World) -> dict[str, GeneratedTask[Any]]:
    """Every task about a world, by name."""
    return {kind.name: kind(world) for kind in _TASKS}


def world_corpus(world: World, documents: int) -> Corpus:
    """Documents about a world.

    Args:
        world: what is true.
        documents: how many; the tasks take turns.

    Raises:
        PerplabError: there are fewer documents than tasks.
    """
    if documents < len(_TASKS):
        raise PerplabError(f"{documents} documents about a world", f"ask for {len(_TASKS)} or more, one a task")
    return Corpus(f"world {world.seed}", "all", _WorldSource(world, documents))


class _WorldSource:
    """The documents, generated anew at each reading."""

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._count = count

    def identity(self) -> str:
        """Version of the generator, seed and number."""
        return f"world {_FORMAT_VERSION} {self._world.seed} {self._count}"

    def approximate_bytes(self) -> int | None:
        """Not known before the documents are made."""
        return None

    def documents(self) -> Iterator[Document]:
        """All documents, the tasks taking turns."""
        random = Random(f"world documents {self._world.seed}")
        tasks = list(generated_tasks(self._world).values())
        for number in range(self._count):
            task = tasks[number % len(tasks)]
            yield Document(task.document(random), task.name, f"{task.name} {number // len(tasks)}")
