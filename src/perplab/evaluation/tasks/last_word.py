"""Last-word cloze: which word ends the sentence.

Like LAMBADA, but decided among four: exact prediction of a whole word has no chance level and lies on the floor for
small models, and it depends on how the tokenizer cuts words. The three distractors end other sentences of the same
document, so topic, frequency and place in the sentence fit every choice, and what decides is the passage.
"""

import re
from collections.abc import Iterator, Sequence

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

_LAST_WORD = re.compile(r"(?<=[a-z,;:)]) ([a-z]{4,})(?=[.?!](?:\s|$))")
_LEAST_CONTEXT = 100


class LastWord:
    """The last word of a sentence, among last words of other sentences."""

    name = "last-word"
    by_byte = False

    def items(self, documents: Sequence[Document], seed: int) -> Iterator[TaskItem]:
        """Items of the documents that are not code."""
        for document in documents:
            words = [] if code_tokens(document) is not None else list(_LAST_WORD.finditer(document.text))
            random = generator_for(self.name, seed, document)
            late = [word for word in words if word.start() >= _LEAST_CONTEXT]
            for word in random.sample(late, min(len(late), ITEMS_A_DOCUMENT)):
                distractors = drawn_distractors(word[0], [other[0] for other in words], random)
                if len(distractors) == CHOICES - 1:
                    context = passage_before(document.text, word.start())
                    yield shuffled_item(context, word[0], distractors, document, random)
