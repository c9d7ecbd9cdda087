"""Identifier recall: which of the names seen above stands here.

Every choice is a name of the same file that the passage has already used, so having been seen speaks for each of them.
The names of a document are asked about alike, however common they are, while distractors are drawn as often as they
were used: a model that reads only the choices, or takes the shortest, is then at chance.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

from perplab.evaluation.code_tokens import code_tokens
from perplab.evaluation.items import (
    CHOICES,
    ITEMS_A_DOCUMENT,
    TaskItem,
    drawn_distractors,
    generator_for,
    passage_before,
    shuffled_item,
)
from perplab.text import Document

_LEAST_LENGTH = 3
"""Letters of a name, at least: loop variables say little."""


class Identifiers:
    """A name that occurred before, among others that did."""

    name = "identifiers"
    by_byte = False

    def items(self, documents: Sequence[Document], seed: int) -> Iterator[TaskItem]:
        """Items of the documents that are code."""
        for document in documents:
            yield from islice(_items(document, generator_for(self.name, seed, document)), ITEMS_A_DOCUMENT)


def _items(document: Document, random: Random) -> Iterator[TaskItem]:
    """At most one item for each name of a document, in random order."""
    tokens = code_tokens(document) or []
    names = [token for token in tokens if token.kind == "name" and len(token.text) >= _LEAST_LENGTH]
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, token in enumerate(names):
        places[token.text].append(place)
    for name in random.sample(list(places), len(places)):
        place = random.choice(places[name])
        context = passage_before(document.text, names[place].start)
        first = bisect_left(names, names[place].start - len(context), key=lambda other: other.start)
        seen = [other.text for other in names[first:place]]
        distractors = drawn_distractors(name, seen, random) if name in seen else []
        if len(distractors) == CHOICES - 1:
            yield shuffled_item(context, name, distractors, document, random)
