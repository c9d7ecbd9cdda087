"""Four-way continuation: which passage goes on from here.

The distractors are passages of three other documents of the same domain. Each begins after the same white space as the
true one, line ends and indentation included, and all are about as long, so layout and length tell nothing.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from random import Random

from perplab.evaluation.items import (
    CHOICES,
    ITEMS_A_DOCUMENT,
    TaskItem,
    generator_for,
    passage_before,
    shuffled_item,
)
from perplab.text import Document

_BORDER = re.compile(r"(?<=\S)\s+(?=\S)")
_WORD_END = re.compile(r"(?<=\S)(?=\s|$)")
_LEAST_CONTEXT = 200
_LENGTH = 40
"""A passage ends with the word that brings it to so many characters."""


class Continuation:
    """What comes next, among passages of other documents of the domain."""

    name = "continuation"
    by_byte = True

    def items(self, documents: Sequence[Document], seed: int) -> Iterator[TaskItem]:
        """Items of every document whose domain has three others."""
        domains: defaultdict[str, list[Document]] = defaultdict(list)
        for document in documents:
            domains[document.domain].append(document)
        for document in documents:
            others = [other for other in domains[document.domain] if other.text not in ("", document.text)]
            random = generator_for(self.name, seed, document)
            borders = [border for border in _BORDER.finditer(document.text) if border.start() >= _LEAST_CONTEXT]
            for border in random.sample(borders, min(len(borders), ITEMS_A_DOCUMENT)):
                answer = _passage(document.text, border)
                distractors = _distractors(answer, border[0], others, random)
                if answer and len(distractors) == CHOICES - 1:
                    context = passage_before(document.text, border.start())
                    yield shuffled_item(context, answer, distractors, document, random)


def _passage(text: str, border: re.Match[str]) -> str:
    """The passage that begins with the white space of a border; empty where the text ends too soon."""
    end = _WORD_END.search(text, border.start() + _LENGTH)
    return text[border.start() : end.start()] if end else ""


def _distractors(answer: str, white_space: str, others: Sequence[Document], random: Random) -> list[str]:
    """Passages after the same white space, each from another document, as many as there are up to what is needed."""
    same = re.compile(rf"(?<=\S){re.escape(white_space)}(?=\S)")
    found: list[str] = []
    for other in random.sample(others, len(others)):
        if len(found) == CHOICES - 1:
            break
        border = same.search(other.text, random.randrange(len(other.text))) or same.search(other.text)
        passage = _passage(other.text, border) if border else ""
        if passage and passage not in (answer, *found):
            found.append(passage)
    return found
