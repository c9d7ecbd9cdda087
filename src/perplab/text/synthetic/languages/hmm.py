"""Hidden Markov models: every symbol comes from a hidden state, and the states from one another.

Decisions:
- Forward and backward passes run over whole batches in log space. `arriving[t]` holds the symbols before t and the
  state at t, `remaining[t]` the symbols after t given that state; neither holds symbol t, so that one pass serves the
  conditionals of every position.
- The hidden label of a position is its most probable state given the whole sentence: it is a function of the sentence,
  which a perfect reader could tell without error.
"""

import numpy as np

from perplab.errors import PerplabError
from perplab.text.synthetic.languages.language import Floats, Ids, Language, digest, drawn, log, log_product, log_sum

_ROUNDING = 1e-9


class HMM(Language):
    """A hidden Markov model over sentences of one length.

    Args:
        initial: (states,) probabilities of the first state.
        transition: (states, states) probabilities of the next state, a row for each state.
        emission: (states, symbols) probabilities of a symbol, a row for each state.
        length: symbols of a sentence.

    Raises:
        PerplabError: the shapes do not belong together, a row does not sum to 1, a symbol never occurs, or there is one
            symbol.
    """

    def __init__(self, initial: Floats, transition: Floats, emission: Floats, length: int) -> None:
        states = len(initial)
        if transition.shape != (states, states) or emission.ndim != 2 or len(emission) != states:
            raise PerplabError(
                f"initial, transition and emission of shapes {initial.shape}, {transition.shape}, {emission.shape}",
                "give (states,), (states, states) and (states, symbols)",
            )
        for name, rows in (("initial", initial), ("transition", transition), ("emission", emission)):
            if (rows < 0).any() or (abs(rows.sum(axis=-1) - 1) > _ROUNDING).any():
                raise PerplabError(f"{name} probabilities that do not sum to 1", "normalise each row")
        super().__init__(emission.shape[1], length)
        self.initial, self.transition, self.emission = initial, transition, emission
        self._refuse_unreachable_symbols()

    @classmethod
    def random(
        cls, *, states: int, symbols: int, length: int, seed: int, concentration: tuple[float, float] = (0.3, 0.3)
    ) -> "HMM":
        """A model whose rows are drawn from symmetric Dirichlet distributions.

        Args:
            states: hidden states.
            symbols: of the vocabulary.
            length: symbols of a sentence.
            seed: of the rows.
            concentration: of transitions and of emissions; below 1 a few entries of a row hold most of it.
        """
        random = np.random.default_rng(seed)
        moves, emits = concentration
        return cls(
            random.dirichlet(np.ones(states)),
            random.dirichlet(np.full(states, moves), states),
            random.dirichlet(np.full(symbols, emits), states),
            length,
        )

    @property
    def states(self) -> int:
        """How many hidden states there are."""
        return len(self.initial)

    def identity(self) -> str:
        """Length and a digest of the probabilities."""
        return f"hmm {self.length} {digest(self.initial, self.transition, self.emission)}"

    def draw(self, n: int, random: np.random.Generator) -> Ids:
        """Sentences (n, length) from a generator."""
        ids = np.empty((n, self.length), dtype=np.int64)
        states = drawn(self.initial[None], np.zeros(n, dtype=np.int64), random)
        for time in range(self.length):
            ids[:, time] = drawn(self.emission, states, random)
            states = drawn(self.transition, states, random)
        return ids

    def hidden_labels(self, ids: Ids) -> Ids:
        """The most probable state at each position given the whole sentence, (n, length)."""
        sentences = self.checked(ids)
        return self.log_posterior(sentences).argmax(axis=-1)

    def log_posterior(self, ids: Ids) -> Floats:
        """Log-probabilities of the states at each position given the whole sentence, (n, length, states).

        Raises:
            PerplabError: a sentence is impossible.
        """
        joint = self._arriving(ids) + self._remaining(ids) + log(self.emission).T[ids]
        total = log_sum(joint)
        if np.isneginf(total).any():
            raise PerplabError(
                f"sentence {np.argwhere(np.isneginf(total))[0][0]} has probability 0", "give sentences of the language"
            )
        return joint - total

    def _after_prefix(self, ids: Ids) -> Floats:
        return log_product(self._arriving(ids), self.emission)

    def _in_context(self, ids: Ids) -> Floats:
        return log_product(self._arriving(ids) + self._remaining(ids), self.emission)

    def _arriving(self, ids: Ids) -> Floats:
        """Log P(x_<t, z_t), (n, length, states)."""
        emitted = log(self.emission).T[ids]
        arriving = np.empty_like(emitted)
        arriving[:, 0] = log(self.initial)
        for time in range(1, self.length):
            arriving[:, time] = log_product(arriving[:, time - 1] + emitted[:, time - 1], self.transition)
        return arriving

    def _remaining(self, ids: Ids) -> Floats:
        """Log P(x_>t | z_t), (n, length, states)."""
        emitted = log(self.emission).T[ids]
        remaining = np.zeros_like(emitted)
        for time in range(self.length - 1, 0, -1):
            remaining[:, time - 1] = log_product(remaining[:, time] + emitted[:, time], self.transition.T)
        return remaining

    def _refuse_unreachable_symbols(self) -> None:
        reached = self.initial > 0
        for _ in range(min(self.states, self.length) - 1):
            reached = reached | (reached @ self.transition > 0)
        missing = np.flatnonzero(~(reached @ self.emission > 0))
        if len(missing):
            raise PerplabError(
                f"symbol {missing[0]} never occurs", "leave it out, or let a state that is reached emit it"
            )
