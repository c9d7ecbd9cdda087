"""A bigram language that a log-bilinear model fits exactly: one context, then one word, with logits U a_c.

Decisions:
- A sentence is two symbols: a context, 0 to contexts - 1, and a word, numbered behind them.
- The vectors that made the language are a minimiser of the model's loss, and so are all (s A, U / s): the same function
  at another point, the balanced one being s = 1.
- Word vectors are centred: what they have in common no softmax sees.
- Its entropies are sums over contexts and words, and exact.
"""

import math

import numpy as np

from perplab.errors import PerplabError
from perplab.text.synthetic.languages.language import (
    Context,
    Entropy,
    Floats,
    Ids,
    Language,
    digest,
    drawn,
    entropies,
    log,
    log_sum,
)


class LogBilinear(Language):
    """A context c and a word w with p(w | c) = softmax(U a_c)_w.

    Args:
        probabilities: (contexts,) of the contexts.
        context_vectors: (contexts, factors), the rows a_c.
        word_vectors: (words, factors), U; their mean is taken off.

    Attributes:
        log_conditional: (contexts, words) log p(w | c).

    Raises:
        PerplabError: the shapes do not belong together, the probabilities do not sum to 1, a context never occurs, or
            there is one word.
    """

    def __init__(self, probabilities: Floats, context_vectors: Floats, word_vectors: Floats) -> None:
        contexts, words = len(probabilities), len(word_vectors)
        if context_vectors.shape != (contexts, *word_vectors.shape[1:]) or word_vectors.ndim != 2:
            raise PerplabError(
                f"{contexts} contexts with vectors of shape {context_vectors.shape} and words of {word_vectors.shape}",
                "give (contexts,), (contexts, factors) and (words, factors)",
            )
        if words < 2:
            raise PerplabError(f"a vocabulary of {words} words", "give two or more: one alone costs nothing")
        if (probabilities <= 0).any() or not math.isclose(probabilities.sum(), 1.0):
            raise PerplabError("contexts that never occur or do not sum to 1", "give positive probabilities")
        super().__init__(contexts + words, 2)
        self.probabilities = probabilities
        self.context_vectors = context_vectors
        self.word_vectors = word_vectors - word_vectors.mean(axis=0)
        logits = context_vectors @ self.word_vectors.T
        self.log_conditional = logits - log_sum(logits)

    @classmethod
    def random(cls, *, contexts: int, words: int, factors: int, seed: int) -> "LogBilinear":
        """A language of standard normal vectors and Dirichlet-distributed contexts."""
        random = np.random.default_rng(seed)
        return cls(
            random.dirichlet(np.full(contexts, 5.0)),
            random.standard_normal((contexts, factors)),
            random.standard_normal((words, factors)),
        )

    def minimiser(self, scale: float = 1.0) -> tuple[Floats, Floats]:
        """Context vectors times `scale` and word vectors over it: the same distribution, unbalanced where not 1."""
        return self.context_vectors * scale, self.word_vectors / scale

    def identity(self) -> str:
        """A digest of the vectors."""
        return f"log-bilinear {digest(self.probabilities, self.context_vectors, self.word_vectors)}"

    def draw(self, n: int, random: np.random.Generator) -> Ids:
        """Sentences (n, 2) from a generator."""
        contexts = drawn(self.probabilities[None], np.zeros(n, dtype=np.int64), random)
        words = drawn(np.exp(self.log_conditional), contexts, random)
        return np.stack((contexts, len(self.probabilities) + words), axis=1)

    def hidden_labels(self, ids: Ids) -> Ids:
        """The most probable context of each word, (n, 1)."""
        words = self.checked(ids)[:, 1] - len(self.probabilities)
        if len(words) and words.min() < 0:
            raise PerplabError(f"sentence {words.argmin()} ends with a context", "give sentences of the language")
        return self._log_joint().argmax(axis=0)[words][:, None]

    def entropy(self, context: Context, *, sentences: int = 4096, seed: int = 0) -> Entropy:
        """Nats a position, exactly; nothing is sampled."""
        joint = self._log_joint()
        both = entropies(joint.ravel())
        of_words = both - entropies(log(self.probabilities))
        of_contexts = both - entropies(log(np.exp(joint).sum(axis=0)))
        total = both if context == "causal" else of_words + of_contexts
        return Entropy(float(total) / 2, 0.0)

    def _log_joint(self) -> Floats:
        """Log p(c, w), (contexts, words)."""
        return log(self.probabilities)[:, None] + self.log_conditional

    def _after_prefix(self, ids: Ids) -> Floats:
        contexts = len(self.probabilities)
        joint = np.full((len(ids), 2, self.vocab_size), -math.inf)
        joint[:, 0, :contexts] = log(self.probabilities)
        begun = np.flatnonzero(ids[:, 0] < contexts)
        joint[begun, 1, contexts:] = self._log_joint()[ids[begun, 0]]
        return joint

    def _in_context(self, ids: Ids) -> Floats:
        contexts = len(self.probabilities)
        joint = self._after_prefix(ids)
        joint[:, 0] = -math.inf
        ended = np.flatnonzero(ids[:, 1] >= contexts)
        joint[ended, 0, :contexts] = self._log_joint().T[ids[ended, 1] - contexts]
        return joint
