"""In-context language learning: strings of an unknown regular language, to be continued in that language.

Decisions:
- An episode is a handful of strings of one automaton with a separator between them. A model sees it as one row of
  tokens and is asked, at every symbol but the last of a string, for the next; where a string ends is never asked. The
  first symbol after a separator is.
- Automata, not strings, are split into train, validation and test, and no two automata of a data set accept the same
  language. An automaton gives one episode.
- Ranges hold both their ends. The published code writes exclusive upper ends, so its 1 to 4 edges, 10 to 20 strings and
  1 to 50 symbols are 1 to 3, 10 to 19 and 1 to 49 here; `data_card` prints what was read and what was drawn.
- Rows have one length: shorter episodes are padded, longer ones are cut.
- A seed gives the same data set everywhere. The held-out rows do not depend on how many rows are trained on, and fewer
  of those are the first of more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.automata import NO_EDGE, Automaton, Range, sample_automaton

if TYPE_CHECKING:
    from datasets import Dataset

LETTERS = "abcdefghijklmnopqr"
SEPARATOR = len(LETTERS)
PADDING = SEPARATOR + 1
VOCABULARY_SIZE = PADDING + 1
SYMBOLS = f"{LETTERS}|."
"""The character of each token id."""

LanguageSplit = Literal["train", "validation", "test"]
_SPLITS: tuple[LanguageSplit, ...] = ("test", "validation", "train")
"""In the order of drawing."""
_MOST_REPEATS = 1000

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LanguageLearningConfig:
    """What to draw. Ranges hold both ends.

    Args:
        train: automata to train on.
        validation: automata to choose settings by.
        test: automata to report on.
        states: of an automaton, before it is minimised.
        alphabet: letters that may occur in an automaton.
        out_degree: edges of a state.
        strings: of an episode.
        string_length: symbols of a string.
        length: tokens of a row.
        seed: of everything that is drawn.

    Raises:
        PerplabError: a size or a range is impossible.
    """

    train: int = 5000
    validation: int = 250
    test: int = 250
    states: Range = (4, 12)
    alphabet: Range = (4, len(LETTERS))
    out_degree: Range = (1, 3)
    strings: Range = (10, 19)
    string_length: Range = (1, 49)
    length: int = 960
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn; automata check their own ranges."""
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 0:
                raise PerplabError(f"{name} of {getattr(self, name)} automata", "give 0 or more")
        for name in ("strings", "string_length"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise PerplabError(f"{name} from {least} to {most}", "give a range of positive numbers")
        if self.length < 2:
            raise PerplabError(f"rows of {self.length} tokens", "give 2 or more, one to read and one to predict")


@dataclass(frozen=True, eq=False)
class Episodes:
    """Rows of tokens and what is known about them.

    Args:
        automata: the language of each row.
        input_ids: (rows, length).
        labels: (rows, length) what follows each token; `IGNORED_LABEL` where that is a separator or padding.
        states: (rows, length) the state that each label is drawn in; -1 where labels are ignored.
    """

    automata: tuple[Automaton, ...]
    input_ids: _Ids
    labels: _Ids
    states: _Ids

    def __len__(self) -> int:
        return len(self.automata)

    def __getitem__(self, rows: slice) -> "Episodes":
        return Episodes(self.automata[rows], self.input_ids[rows], self.labels[rows], self.states[rows])

    @property
    def score_mask(self) -> npt.NDArray[np.bool_]:
        """(rows, length) true where a prediction is asked for."""
        return self.labels != IGNORED_LABEL

    @cached_property
    def target_probs(self) -> npt.NDArray[np.float32]:
        """(rows, length, vocabulary) the true distribution of what follows; zeros where nothing is asked."""
        probabilities = np.zeros((*self.input_ids.shape, VOCABULARY_SIZE), dtype=np.float32)
        for row, automaton in enumerate(self.automata):
            asked = self.score_mask[row]
            probabilities[row, asked, : len(LETTERS)] = automaton.next_distribution(self.states[row, asked])
        return probabilities

    def to_dataset(self) -> "Dataset":
        """An Arrow table: `input_ids`, `labels`, `states`, and the automaton's transitions as JSON, a row each."""
        import json

        from datasets import Dataset

        return Dataset.from_dict(
            {
                "input_ids": self.input_ids,
                "labels": self.labels,
                "states": self.states,
                "automaton": [json.dumps(automaton.transitions.tolist()) for automaton in self.automata],
            }
        )

    @classmethod
    def from_dataset(cls, table: "Dataset") -> "Episodes":
        """What `to_dataset` made a table of."""
        import json

        columns = table.with_format("numpy")
        return cls(
            tuple(Automaton(np.array(json.loads(text))) for text in table["automaton"]),
            *(np.asarray(columns[name][:]) for name in ("input_ids", "labels", "states")),
        )


def language_learning_episodes(config: LanguageLearningConfig) -> dict[LanguageSplit, Episodes]:
    """Draw a data set: an episode for each of so many different languages.

    Raises:
        PerplabError: the ranges allow no automaton, or fewer languages than asked for.
    """
    random = np.random.default_rng(config.seed)
    languages = _different_languages(config, random)
    return {split: _episodes(islice(languages, getattr(config, split)), config, random) for split in _SPLITS}


def data_card(config: LanguageLearningConfig, splits: dict[LanguageSplit, Episodes]) -> str:
    """What was asked for and what came out, in Markdown."""
    lines = [
        "# In-context language learning",
        "",
        "Generated strings of random regular languages; no licence applies. Ranges hold both ends.",
        "",
        f"- automata: {_spelled(config.states)} states, {_spelled(config.alphabet)} of {len(LETTERS)} letters, "
        f"{_spelled(config.out_degree)} equally likely edges a state, then minimised",
        f"- episodes: {_spelled(config.strings)} strings of {_spelled(config.string_length)} symbols, rows of "
        f"{config.length} tokens, seed {config.seed}",
        f"- tokens: {SYMBOLS!r}, the last two being separator and padding",
        "- scored: every symbol but the first of a row; never where a string ends",
        "",
        "| split | automata | states | edges a state | tokens a row | rows cut | scored | entropy floor, nats |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_card_row(name, episodes) for name, episodes in splits.items() if len(episodes))])


def _card_row(name: str, episodes: Episodes) -> str:
    states = [len(automaton.transitions) for automaton in episodes.automata]
    edges = np.concatenate([automaton.out_degree for automaton in episodes.automata])
    probabilities = episodes.target_probs[episodes.score_mask].max(axis=-1)  # equal over a state's edges
    tokens = (episodes.input_ids != PADDING).sum(axis=1)
    full = float((tokens == episodes.input_ids.shape[1]).mean())
    cells = (
        f"{len(episodes)}",
        f"{np.mean(states):.1f}",
        f"{edges.mean():.2f}",
        f"{tokens.mean():.0f}",
        f"{full:.1%}",
        f"{episodes.score_mask.sum()}",
        f"{-np.log(probabilities).mean():.3f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def _different_languages(config: LanguageLearningConfig, random: np.random.Generator) -> Iterator[Automaton]:
    """Automata no two of which accept the same strings."""
    known: set[str] = set()
    while True:
        for _ in range(_MOST_REPEATS):
            automaton = sample_automaton(
                random,
                states=config.states,
                alphabet=config.alphabet,
                out_degree=config.out_degree,
                symbols=len(LETTERS),
            )
            key = automaton.canonical_key()
            if key not in known:
                break
        else:
            raise PerplabError(
                f"no new language after {_MOST_REPEATS} draws, {len(known)} are known",
                "ask for fewer automata, or allow more states, letters or edges",
            )
        known.add(key)
        yield automaton


def _episodes(languages: Iterator[Automaton], config: LanguageLearningConfig, random: np.random.Generator) -> Episodes:
    """A row for each language, drawn before the next language is."""
    automata: list[Automaton] = []
    rows = [np.empty((0, 2, config.length + 1), dtype=np.int64)]
    for automaton in languages:
        automata.append(automaton)
        drawn = _episode(automaton, config, random)[:, : config.length + 1]
        row = np.tile([[PADDING], [NO_EDGE]], config.length + 1)
        row[:, : drawn.shape[1]] = drawn
        rows.append(row[None])
    tokens, states = np.concatenate(rows).swapaxes(0, 1)
    labels = np.where(tokens[:, 1:] < SEPARATOR, tokens[:, 1:], IGNORED_LABEL)
    return Episodes(tuple(automata), tokens[:, :-1], labels, states[:, 1:])


def _episode(automaton: Automaton, config: LanguageLearningConfig, random: np.random.Generator) -> _Ids:
    """(2, tokens): the tokens, and the state before each of them, -1 before a separator."""
    pieces = []
    for _ in range(int(random.integers(*config.strings, endpoint=True))):
        string, states = automaton.sample(random, int(random.integers(*config.string_length, endpoint=True)))
        pieces += [np.array([[SEPARATOR], [NO_EDGE]]), np.stack((string, states))]
    return np.concatenate(pieces[1:], axis=1)


def _spelled(bounds: Range) -> str:
    return f"{bounds[0]} to {bounds[1]}"
