"""Whether a claim follows from what is given, contradicts it, or neither.

The three answers are equally common. A claim about the same animal is true or false; about another nobody knows. The
colour changes nothing; it makes texts enough for some of each answer to be held out.
"""

from random import Random

from perplab.text.synthetic.items import ChoiceItem
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import ANIMALS, COLOURS, PLACES

_ANSWERS = (" yes.", " no.", " maybe.")
_MAYBE = 2


class Entailment(GeneratedTask[ChoiceItem]):
    """An animal is somewhere; it, or another, is claimed to be there or elsewhere."""

    name = "entailment"

    def item(self, random: Random) -> ChoiceItem:
        """A claim to judge."""
        animal, other_animal = random.sample(ANIMALS, 2)
        place, other_place = random.sample(PLACES, 2)
        answer = random.randrange(len(_ANSWERS))
        claimed = (place, other_place, random.choice((place, other_place)))[answer]
        subject = other_animal if answer == _MAYBE else animal
        given = f"{random.choice(COLOURS)} {animal} in {place}"
        return ChoiceItem(f"Given {given}. Claim {subject} in {claimed}. Answer", _ANSWERS, answer)
