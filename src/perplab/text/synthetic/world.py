"""What is true in a generated world.

Decisions:
- Everything follows from one seed: who has which properties, what a second language calls things, what people wrongly
  believe, and which groups they are prejudiced against.
- Names and words of the second language are invented, so nothing a model knows from elsewhere helps it.
- Truth and popular belief about a person always differ, and both are among the same ten occupations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from random import Random

ANIMALS = ("fox", "owl", "cat", "hen", "ram", "bee", "elk", "cow", "ant", "bat")
VERBS = ("sees", "likes", "finds", "takes", "holds", "paints", "hides", "wants")
OBJECTS = ("stone", "river", "key", "lamp", "boat", "drum", "coin", "rope", "book", "bell")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")
PLACES = ("barn", "tower", "mill", "cave", "field", "inn", "yard", "port")
FOODS = ("bread", "soup", "rice", "figs", "beans", "plums", "nuts", "corn")
OCCUPATIONS = ("baker", "king", "smith", "judge", "poet", "tailor", "guard", "miner", "nurse", "priest")
PROPERTIES: Mapping[str, tuple[str, ...]] = {"colour": COLOURS, "food": FOODS, "home": PLACES, "animal": ANIMALS}
TRAITS = (("lazy", "eager"), ("rude", "kind"), ("dull", "clever"), ("cruel", "gentle"))
"""Pairs of a bad trait and its good opposite."""
PEOPLE = 100

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Prejudice:
    """Two groups of people, and the trait that one of them is said to have.

    Attributes:
        accused: said to be `bad`.
        other: said to be `good`.
        bad: a trait.
        good: its opposite.
    """

    accused: str
    other: str
    bad: str
    good: str


class World:
    """A world.

    Args:
        seed: same seed, same world.

    Attributes:
        people: invented names.
        facts: value of each person's property.
        second_language: word of the second language for each English word; no two words share one.
        truths: each person's occupation.
        beliefs: the occupation that people wrongly believe each person to have.
        prejudices: one for each pair of traits.
    """

    def __init__(self, seed: int) -> None:
        random = Random(f"world {seed}")
        self.seed = seed
        invented = [first + second for first, second in product(_syllables(), repeat=2)]
        random.shuffle(invented)
        words = (*ANIMALS, *VERBS, *OBJECTS, *COLOURS, *PLACES, *FOODS, *PROPERTIES)
        self.people = tuple(name.capitalize() for name in invented[:PEOPLE])
        self.facts = {
            (person, name): random.choice(values) for person in self.people for name, values in PROPERTIES.items()
        }
        self.second_language = dict(zip(words, (word + "n" for word in invented[PEOPLE:]), strict=False))
        pairs = {person: random.sample(OCCUPATIONS, 2) for person in self.people}
        self.truths = {person: truth for person, (truth, _) in pairs.items()}
        self.beliefs = {person: belief for person, (_, belief) in pairs.items()}
        groups = [word + "s" for word in invented[-2 * len(TRAITS) :]]
        self.prejudices = tuple(
            Prejudice(accused, other, bad, good)
            for accused, other, (bad, good) in zip(groups[::2], groups[1::2], TRAITS, strict=True)
        )


def _syllables() -> list[str]:
    return [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
