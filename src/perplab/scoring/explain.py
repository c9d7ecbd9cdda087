"""Why two conventions give two numbers for one model and one text.

- On the way from one convention to the other one facet changes at a time, and the text is scored by every mixture on
  the way. The logarithms of the numbers therefore add up to the difference, with nothing left over.
- The order is concatenation, first token, windows, scored tokens, averaging. It starts at the convention that joins
  less: a convention that drops what does not fill a window would have nothing of short documents to score. Of two that
  join alike it starts at the one that drops nothing, then at the first in the alphabet.
- The way back is therefore the same way: `explain(a, b)` and `explain(b, a)` differ in sign.
- How much is put down to a facet depends on the order, as with any sequence of changes; the sum does not.
- The number is the one that a convention's users quote. Where one is a word perplexity and the other a token
  perplexity, the change of unit belongs to the averaging.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from perplab.models import LanguageModel
from perplab.scoring.conventions import Convention, convention_of, fitted_windows, max_length_of
from perplab.scoring.perplexity import headline
from perplab.scoring.streams import Concatenation
from perplab.scoring.text_scores import score
from perplab.text import Document

Facet = Literal["concatenation", "first token", "windows", "scored tokens", "averaging"]
FACETS: tuple[Facet, ...] = get_args(Facet)


@dataclass(frozen=True)
class Step:
    """One facet changed.

    Attributes:
        facet: which.
        before: its choice in the first convention.
        after: its choice in the second.
        number: the number with it, and everything in the rows above, changed.
        log_change: what the change adds to the logarithm of the number.
    """

    facet: Facet
    before: str
    after: str
    number: float
    log_change: float

    @property
    def factor(self) -> float:
        """What the change multiplies the number by."""
        return math.exp(self.log_change)


@dataclass(frozen=True)
class Explanation:
    """The way from one convention's number to another's.

    Attributes:
        first: name of the first convention.
        first_unit: of its number.
        first_number: its number.
        second: name of the second convention.
        second_unit: of its number.
        second_number: its number.
        steps: the changes in order; their `log_change` add up to that of the number.
    """

    first: str
    first_unit: str
    first_number: float
    second: str
    second_unit: str
    second_number: float
    steps: tuple[Step, ...]

    @property
    def log_change(self) -> float:
        """Logarithm of the second number minus that of the first."""
        return math.log(self.second_number) - math.log(self.first_number)


def explain(
    language_model: LanguageModel,
    text: str | Iterable[Document],
    first: str | Convention,
    second: str | Convention,
    *,
    on_number: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Attribute the difference between two conventions' numbers to the choices in which they differ.

    Args:
        language_model: the model and its tokenizer.
        text: one text, or documents; they are read several times.
        first: a convention or its name.
        second: a convention or its name.
        on_number: told how many numbers are known, and of how many.

    Raises:
        PerplabError: a convention is unknown, or refuses the text (too short, window too long).
    """
    start, goal = convention_of(first), convention_of(second)
    documents = text if isinstance(text, str) else list(text)
    backwards = _rank(start) > _rank(goal)
    path = _path(goal, start) if backwards else _path(start, goal)
    numbers = _numbers(language_model, documents, path, on_number)
    facets = FACETS
    if backwards:
        numbers, facets = numbers[::-1], facets[::-1]
    max_length = max_length_of(language_model)
    steps = tuple(
        Step(
            facet,
            _choice(start, facet, max_length),
            _choice(goal, facet, max_length),
            after,
            math.log(after) - math.log(before),
        )
        for facet, (before, after) in zip(facets, pairwise(numbers), strict=True)
    )
    return Explanation(start.name, start.unit, numbers[0], goal.name, goal.unit, numbers[-1], steps)


_FIELDS: Mapping[Facet, tuple[str, ...]] = {
    "concatenation": ("concatenation",),
    "first token": ("first_token",),
    "windows": ("windows", "window", "stride"),
    "scored tokens": ("scored_tokens",),
    "averaging": ("averaging",),
}


def _rank(convention: Convention) -> tuple[int, bool, str]:
    """The way begins at the convention whose rank is lower."""
    joined = get_args(Concatenation).index(convention.concatenation)
    return joined, convention.windows.tail == "dropped", convention.name


def _path(start: Convention, goal: Convention) -> list[Convention]:
    """The mixtures on the way, both ends included."""
    path = [start]
    for facet in FACETS:
        changed = {name: getattr(goal, name) for name in _FIELDS[facet]}
        path.append(replace(path[-1], name=f"{start.name} on the way to {goal.name}", **changed))
    return path


def _numbers(
    language_model: LanguageModel,
    documents: str | list[Document],
    path: list[Convention],
    on_number: Callable[[int, int], None] | None,
) -> list[float]:
    """The number of each mixture. What differs only in averaging is scored once."""
    numbers: list[float] = []
    scored_by, scores = None, None
    for mixture in path:
        reading = replace(mixture, name="", averaging="tokens")
        if scores is None or reading != scored_by:
            scored_by, scores = reading, score(language_model, documents, convention=mixture)
        numbers.append(headline(scores, mixture))
        if on_number:
            on_number(len(numbers), len(path))
    return numbers


def _choice(convention: Convention, facet: Facet, max_length: int) -> str:
    if facet == "windows":
        return str(fitted_windows(convention, max_length))
    return str(getattr(convention, _FIELDS[facet][0]))
