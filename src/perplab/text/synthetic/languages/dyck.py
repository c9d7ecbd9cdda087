"""Balanced brackets: all Dyck words of one length, equally likely.

Decisions:
- Symbols 0 to kinds - 1 open, kinds to 2 kinds - 1 close; a word is balanced and ends with no bracket open.
- Everything is a count of words. Of the words that go on from a prefix the number depends on two things alone: how many
  brackets are open, and how many symbols are left.
- The other symbols of a word say for certain which one is hidden, so the masked entropy is 0; the causal one is the
  logarithm of the number of words over their length.
"""

import math

import numpy as np

from perplab.errors import PerplabError
from perplab.text.synthetic.languages.language import Context, Entropy, Floats, Ids, Language, Marks, drawn


class Dyck(Language):
    """Uniformly distributed balanced brackets.

    Args:
        length: of a word; even.
        kinds: of brackets.

    Attributes:
        log_words: logarithm of the number of words.

    Raises:
        PerplabError: the length is odd, or there is no bracket.
    """

    def __init__(self, length: int, kinds: int = 1) -> None:
        super().__init__(2 * kinds, length)
        if length % 2:
            raise PerplabError(f"balanced brackets of length {length}", "give an even length")
        self.kinds = kinds
        self._log_ways = _log_completions(length, kinds)
        self.log_words = float(self._log_ways[length, 0])

    def identity(self) -> str:
        """Length and kinds."""
        return f"dyck {self.length} {self.kinds}"

    def draw(self, n: int, random: np.random.Generator) -> Ids:
        """Words (n, length) from a generator."""
        ids = np.empty((n, self.length), dtype=np.int64)
        stack = _Stack(n, self.length, self.kinds)
        for time in range(self.length):
            log_ways = self._ways(stack, self.length - time - 1)
            ways = np.exp(log_ways - log_ways.max(axis=1, keepdims=True))
            ids[:, time] = drawn(ways, np.arange(n), random)
            stack.read(ids[:, time])
        return ids

    def hidden_labels(self, ids: Ids) -> Ids:
        """How many brackets are open after each symbol, (n, length)."""
        return np.where(self.checked(ids) < self.kinds, 1, -1).cumsum(axis=1)

    def entropy(self, context: Context, *, sentences: int = 4096, seed: int = 0) -> Entropy:
        """Nats a position, exactly; nothing is sampled."""
        return Entropy(0.0 if context == "masked" else self.log_words / self.length, 0.0)

    def _after_prefix(self, ids: Ids) -> Floats:
        joint = np.empty((*ids.shape, self.vocab_size))
        stack = _Stack(len(ids), self.length, self.kinds)
        for time in range(self.length):
            joint[:, time] = self._ways(stack, self.length - time - 1) - self.log_words
            stack.read(ids[:, time])
        return joint

    def _in_context(self, ids: Ids) -> Floats:
        joint = np.empty((*ids.shape, self.vocab_size))
        for time in range(self.length):
            for symbol in range(self.vocab_size):
                tried = ids.copy()
                tried[:, time] = symbol
                joint[:, time, symbol] = np.where(self._balanced(tried), -self.log_words, -math.inf)
        return joint

    def _balanced(self, ids: Ids) -> Marks:
        stack = _Stack(len(ids), self.length, self.kinds)
        for time in range(self.length):
            stack.read(ids[:, time])
        return stack.possible & (stack.depth == 0)

    def _ways(self, stack: "_Stack", left: int) -> Floats:
        """Log of the number of words that go on with each symbol, (n, symbols), when `left` more follow it."""
        ways = np.full((len(stack.depth), self.vocab_size), -math.inf)
        ways[:, : self.kinds] = self._log_ways[left, stack.depth + 1][:, None]
        closes = np.flatnonzero(stack.depth > 0)
        ways[closes, self.kinds + stack.top()[closes]] = self._log_ways[left, stack.depth[closes] - 1]
        ways[~stack.possible] = -math.inf
        return ways


class _Stack:
    """The open brackets of a batch of prefixes.

    Attributes:
        depth: (n,) how many are open.
        possible: (n,) whether the prefix closed nothing but what was open.
    """

    def __init__(self, n: int, length: int, kinds: int) -> None:
        self.depth = np.zeros(n, dtype=np.int64)
        self.possible = np.ones(n, dtype=bool)
        self._kinds = kinds
        self._open = np.zeros((n, length + 1), dtype=np.int64)

    def top(self) -> Ids:
        """Kind of the last bracket that is open, (n,); meaningless where none is."""
        return self._open[np.arange(len(self.depth)), self.depth - 1]

    def read(self, symbols: Ids) -> None:
        """Go on by one symbol each, (n,)."""
        opens = symbols < self._kinds
        self.possible &= opens | ((self.depth > 0) & (self.top() == symbols - self._kinds))
        self._open[np.arange(len(symbols)), self.depth] = np.where(opens, symbols, 0)
        self.depth = np.maximum(self.depth + np.where(opens, 1, -1), 0)


def _log_completions(length: int, kinds: int) -> Floats:
    """(length + 1, length + 2): log of the number of ways to close `depth` brackets in `left` symbols."""
    ways = [[0] * (length + 2) for _ in range(length + 1)]
    ways[0][0] = 1
    for left in range(1, length + 1):
        for depth in range(length + 1):
            closing = ways[left - 1][depth - 1] if depth else 0
            ways[left][depth] = kinds * ways[left - 1][depth + 1] + closing
    return np.array([[math.log(count) if count else -math.inf for count in row] for row in ways])
