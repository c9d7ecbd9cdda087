"""Bracket closing: a bracket is closed here; which kind is it.

Only the innermost open bracket fits, so the answer follows from the code alone; at least one other pair stands between
it and its closing one, because otherwise the last bracket seen would give it away. Kinds take turns, however rare one
is, so guessing the commonest is right a third of the time.
"""

from collections.abc import Iterator, Sequence

from perplab.evaluation.code_tokens import CLOSING, code_tokens, matched_brackets
from perplab.evaluation.items import (
    CONTEXT_CHARACTERS,
    ITEMS_A_DOCUMENT,
    TaskItem,
    generator_for,
    passage_before,
    shuffled_item,
)
from perplab.text import Document

_MOST_DISTANCE = CONTEXT_CHARACTERS // 2
"""Characters from the opening bracket to the closing one; a passage keeps so many of those before it."""


class Brackets:
    """The kind of the closing bracket that comes next."""

    name = "brackets"
    by_byte = False

    def items(self, documents: Sequence[Document], seed: int) -> Iterator[TaskItem]:
        """Items of the documents that are code, one of each kind in turn until one kind has no more."""
        kinds: dict[str, list[TaskItem]] = {closing: [] for closing in CLOSING.values()}
        for document in documents:
            random = generator_for(self.name, seed, document)
            for kind, found in _places(document).items():
                others = [other for other in kinds if other != kind]
                for place in random.sample(found, min(len(found), ITEMS_A_DOCUMENT)):
                    context = passage_before(document.text, place)
                    kinds[kind].append(shuffled_item(context, kind, others, document, random))
        for turn in zip(*kinds.values(), strict=False):
            yield from turn


def _places(document: Document) -> dict[str, list[int]]:
    """Where brackets close around others, by kind."""
    places: dict[str, list[int]] = {kind: [] for kind in CLOSING.values()}
    last_closed = -1
    for opening, closing in matched_brackets(code_tokens(document) or []):
        if last_closed > opening.start and closing.start - opening.start <= _MOST_DISTANCE:
            places[closing.text].append(closing.start)
        last_closed = closing.start
    return places
