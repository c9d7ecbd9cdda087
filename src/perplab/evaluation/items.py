"""What a task asks: a text, some ways to go on, and which of them did come.

Decisions:
- The choices of an item are shuffled with the item's own seed, so the place of the answer says nothing.
- What a task may ask about a document depends on the seed and on that document alone; only distractors that come from
  other documents depend on those.
- No choice begins another one. A model gives a beginning all the probability of what it may grow into, so the shorter
  of the two would win whatever the context says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from perplab.text import Document

CONTEXT_CHARACTERS = 800
"""Longest context of an item: it fits the positions of small models."""
ITEMS_A_DOCUMENT = 4
"""At most so many from one document, because items of one document are not independent."""
CHOICES = 4


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One question.

    Attributes:
        context: what the model reads.
        choices: ways to go on.
        answer: index of the one that came.
        document: name of the document the question is from.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    document: str


class Task(Protocol):
    """Where questions come from.

    Attributes:
        name: what the command line calls it.
        by_byte: whether the cheapest choice is the one with the least cost a byte, for choices of several words; the
            least cost otherwise.
    """

    name: str
    by_byte: bool

    def items(self, documents: Sequence[Document], seed: int) -> Iterator[TaskItem]:
        """The items in the order of the documents; the same seed gives the same items."""


def generator_for(task: str, seed: int, document: Document) -> Random:
    """The randomness of one task in one document."""
    return Random(f"{task}\0{seed}\0{document.name}")


def shuffled_item(
    context: str, answer: str, distractors: Sequence[str], document: Document, random: Random
) -> TaskItem:
    """An item with the answer at a random place."""
    choices = [answer, *distractors]
    random.shuffle(choices)
    return TaskItem(context, tuple(choices), choices.index(answer), document.name)


def passage_before(text: str, end: int) -> str:
    """At most `CONTEXT_CHARACTERS` that end at `end`, beginning with a line or, in long lines, with a word."""
    start = max(0, end - CONTEXT_CHARACTERS)
    if start == 0:
        return text[:end]
    for border in "\n ":
        found = text.find(border, start, end - CONTEXT_CHARACTERS // 2)
        if found >= 0:
            return text[found + 1 : end]
    return text[start:end]


def drawn_distractors(answer: str, candidates: Sequence[str], random: Random) -> list[str]:
    """`CHOICES` - 1 different candidates, each as often as it occurs among them; fewer where there are too few.

    Drawing by occurrence gives distractors the frequencies of answers: how common a choice is says nothing.
    """
    chosen: list[str] = []
    for candidate in random.sample(candidates, len(candidates)):
        others = (answer, *chosen)
        if not any(candidate.startswith(other) or other.startswith(candidate) for other in others):
            chosen.append(candidate)
        if len(chosen) == CHOICES - 1:
            break
    return chosen
