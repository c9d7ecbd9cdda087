"""What is to be remembered: facts, the same facts in a second language, and truths against popular belief.

A falsehood is stated three times as often as the truth. Only the words before it tell them apart, so a model that has
merely learnt what is said most repeats what people say.
"""

from collections.abc import Sequence
from random import Random

from perplab.text.synthetic.items import ChoiceItem
from perplab.text.synthetic.tasks import RecallTask
from perplab.text.synthetic.world import OCCUPATIONS, PROPERTIES

_CHOICES = 4
_SHARE_OF_TRUTH = 0.25


class Facts(RecallTask[ChoiceItem]):
    """A person's property, among four."""

    name = "facts"

    def statement(self, random: Random) -> str:
        """A fact."""
        return self.item(random).text

    def item(self, random: Random) -> ChoiceItem:
        """Which value it is."""
        person = random.choice(self.world.people)
        relation, values = random.choice(list(PROPERTIES.items()))
        value = self.world.facts[person, relation]
        others = random.sample([other for other in values if other != value], _CHOICES - 1)
        context = f"{person} {self._spelled(relation)}"
        return _shuffled(context, self._spelled(value), [self._spelled(other) for other in others], random)

    def _spelled(self, word: str) -> str:
        return word


class FactsInSecondLanguage(Facts):
    """The same facts, in the words of a second language."""

    name = "second-language"

    def _spelled(self, word: str) -> str:
        return self.world.second_language[word]


class Truth(RecallTask[ChoiceItem]):
    """A person's true occupation, the one that people believe, and two more."""

    name = "truth"

    def statement(self, random: Random) -> str:
        """The truth, or more often what people say."""
        person = random.choice(self.world.people)
        if random.random() < _SHARE_OF_TRUTH:
            return f"In truth {person} is a {self.world.truths[person]}."
        return f"They say {person} is a {self.world.beliefs[person]}."

    def item(self, random: Random) -> ChoiceItem:
        """Which is true."""
        person = random.choice(self.world.people)
        truth, belief = self.world.truths[person], self.world.beliefs[person]
        others = random.sample([name for name in OCCUPATIONS if name not in (truth, belief)], _CHOICES - 2)
        return _shuffled(f"In truth {person} is a", truth, [belief, *others], random)


def _shuffled(context: str, answer: str, others: Sequence[str], random: Random) -> ChoiceItem:
    """The answer at a random place among the others. Each ends its sentence, so none begins another."""
    choices = [f" {word}." for word in (answer, *others)]
    order = random.sample(range(len(choices)), len(choices))
    return ChoiceItem(context, tuple(choices[place] for place in order), order.index(0))
