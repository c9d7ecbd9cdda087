"""What has one right answer to write: translation, summary, arithmetic.

- Translation is word for word: five English words become five of the second language.
- A summary repeats the first sentence of two, as in news, where it says most.
- Arithmetic is modulo seven, so every number is one digit and there are few steps to learn. Two of them are written
  out; what counts is the last number.
"""

from random import Random

from perplab.text.synthetic.items import WritingItem
from perplab.text.synthetic.tasks import GeneratedTask
from perplab.text.synthetic.world import ANIMALS, COLOURS, OBJECTS, VERBS

MODULUS = 7


class Translation(GeneratedTask[WritingItem]):
    """English into the second language."""

    name = "translation"

    def item(self, random: Random) -> WritingItem:
        """A sentence, and what it becomes."""
        words = [random.choice(group) for group in (COLOURS, ANIMALS, VERBS, COLOURS, OBJECTS)]
        translated = [self.world.second_language[word] for word in words]
        return WritingItem(f"Translate {' '.join(words)}:", f" {' '.join(translated)}.")


class Summary(GeneratedTask[WritingItem]):
    """The first sentence of two."""

    name = "summary"

    def item(self, random: Random) -> WritingItem:
        """Two sentences, and the first one."""
        agents, objects = random.sample(ANIMALS, 2), random.sample(OBJECTS, 2)
        sentences = [f"{agent} {random.choice(VERBS)} {thing}" for agent, thing in zip(agents, objects, strict=True)]
        return WritingItem(f"Text {'. '.join(sentences)}. Summary:", f" {sentences[0]}.")


class Arithmetic(GeneratedTask[WritingItem]):
    """Two steps of addition or subtraction."""

    name = "arithmetic"

    def item(self, random: Random) -> WritingItem:
        """Three numbers with two signs, and both steps."""
        first, second, third = (random.randrange(MODULUS) for _ in range(3))
        sign, next_sign = random.choice("+-"), random.choice("+-")
        middle = _result(first, sign, second)
        steps = f"{first}{sign}{second}={middle}, {middle}{next_sign}{third}={_result(middle, next_sign, third)}"
        return WritingItem(f"Sum {first}{sign}{second}{next_sign}{third}:", f" {steps}.")


def _result(first: int, sign: str, second: int) -> int:
    return (first + second if sign == "+" else first - second) % MODULUS


def last_number(answer: str) -> str:
    """What stands after the last equals sign, up to the end of the sentence; empty where there is none."""
    _, found, rest = answer.rpartition("=")
    return rest.split(".")[0].strip() if found else ""
