"""Instructions with one to five constraints that a rule can check.

- A series adds one constraint at a time, in random order, so a higher level asks for all that a lower one does.
- Many answers are right, and training shows the plainest: a word that nobody asked for is "la". Which constraints an
  answer meets is checked by rule, so no judge is needed.
"""

from collections.abc import Sequence
from random import Random

from perplab.errors import PerplabError
from perplab.text.synthetic.items import Constraint, InstructionItem
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import ANIMALS, COLOURS, OBJECTS

LEVELS = 5
_WORDS = (*ANIMALS, *COLOURS, *OBJECTS)
_LENGTHS = (3, 5, 6)
_DEFAULT_LENGTH = 4
_FILLER = "la"


class Instructions(GeneratedTask[InstructionItem]):
    """Words to be written as asked."""

    name = "instructions"

    def item(self, random: Random) -> InstructionItem:
        """An instruction of a random level."""
        return random.choice(self._series(0, random))

    def items(self, count: int) -> Sequence[InstructionItem]:
        """`count` instructions, five levels of each series. Short ones occur in training, as instructions do.

        Raises:
            PerplabError: `count` is not a multiple of the five levels.
        """
        if count % LEVELS:
            raise PerplabError(f"{count} instructions are not whole series", f"ask for a multiple of {LEVELS}")
        random = Random(f"{self.name} items {self.world.seed}")
        return [item for group in range(count // LEVELS) for item in self._series(group, random)]

    def _series(self, group: int, random: Random) -> list[InstructionItem]:
        """The five levels."""
        first, middle, last = random.sample(_WORDS, 3)
        constraints = [
            Constraint("first", first),
            Constraint("with", middle),
            Constraint("last", last),
            Constraint("words", str(random.choice(_LENGTHS))),
            Constraint("mark", random.choice("!?")),
        ]
        random.shuffle(constraints)
        series = [tuple(constraints[:level]) for level in range(1, LEVELS + 1)]
        return [InstructionItem(_prompt(asked), _answer(asked), asked, group) for asked in series]


def _prompt(constraints: Sequence[Constraint]) -> str:
    return f"Write {', '.join(f'{constraint.kind} {constraint.value}' for constraint in constraints)}:"


def _answer(constraints: Sequence[Constraint]) -> str:
    """The plainest answer: four words, of which the second is the one to be held, ended by a full stop."""
    asked = {constraint.kind: constraint.value for constraint in constraints}
    words = [_FILLER] * int(asked.get("words", _DEFAULT_LENGTH))
    words[0], words[1], words[-1] = (asked.get(kind, _FILLER) for kind in ("first", "with", "last"))
    return f" {' '.join(words)}{asked.get('mark', '.')}"
