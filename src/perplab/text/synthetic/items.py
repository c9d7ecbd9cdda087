"""Questions with known answers.

The text of an item is what a training document with the same question would say: prompt and right answer in one.
"""

import re
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """Which of some continuations is right.

    Attributes:
        context: what comes before.
        choices: continuations, none of which begins another.
        answer: index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        """Context and right answer."""
        return self.context + self.choices[self.answer]


@dataclass(frozen=True, slots=True)
class WritingItem:
    """A text to be written.

    Attributes:
        prompt: what asks for it.
        reference: the right continuation.
    """

    prompt: str
    reference: str

    @property
    def text(self) -> str:
        """Prompt and right continuation."""
        return self.prompt + self.reference


@dataclass(frozen=True, slots=True)
class GroupItem:
    """Which of two groups a trait is said of; the context may not tell.

    Attributes:
        context: what comes before.
        choices: one group, the other, and that it is unknown.
        answer: index of the right one.
        biased: index of the group that prejudice names.
        unknown: index of "unknown".
        ambiguous: whether the context does not tell.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    biased: int
    unknown: int
    ambiguous: bool

    @property
    def text(self) -> str:
        """Context and right answer."""
        return self.context + self.choices[self.answer]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer has to be like, checked by rule.

    Attributes:
        kind: its first word, its last word, a word it holds, how many words it has, or its final mark.
        value: the word, number or mark.
    """

    kind: Literal["first", "last", "with", "words", "mark"]
    value: str

    def met_by(self, answer: str) -> bool:
        """Whether an answer is like that."""
        words, value = _WORD.findall(answer), self.value
        if self.kind == "mark":
            return answer.strip().endswith(value)
        if self.kind == "words":
            return len(words) == int(value)
        if self.kind == "with":
            return value in words
        return bool(words) and words[0 if self.kind == "first" else -1] == value


@dataclass(frozen=True, slots=True)
class InstructionItem:
    """An instruction of some level.

    Attributes:
        prompt: what asks.
        reference: an answer that meets every constraint.
        constraints: as many as the level says.
        group: number of the series that it belongs to; each level adds a constraint to the one before it.
    """

    prompt: str
    reference: str
    constraints: tuple[Constraint, ...]
    group: int

    @property
    def level(self) -> int:
        """From 1 to 5."""
        return len(self.constraints)

    @property
    def text(self) -> str:
        """Prompt and the answer that meets everything."""
        return self.prompt + self.reference
