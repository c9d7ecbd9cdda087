"""Probabilistic context-free grammars in layers: a non-terminal makes two of the next layer, or a word.

Decisions:
- Layers bound the depth, so no derivation runs away, nothing is rejected, and a sentence has at most 2^depth words.
  Non-terminals of the last layer make words only; those of the layers above make one with a small probability, which is
  why sentences differ in length and their parses are uncertain.
- Sentences shorter than the longest are filled up with an end symbol, the last of the vocabulary, so that where a
  sentence ends is predicted like a word. No non-terminal makes it, so that a chart needs no case for it.
- Charts (CYK, summed over parses) are in log space over a whole batch, one for each layer.
- Three labels: the non-terminal with the highest inside probability of the whole sentence, its first half and its first
  quarter (rounded down, a word at least), numbered through all layers.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from perplab.errors import PerplabError
from perplab.text.synthetic.languages.language import (
    Floats,
    Ids,
    Language,
    Marks,
    digest,
    drawn,
    log,
    log_product,
    log_sum,
)

_ROUNDING = 1e-9


class PCFG(Language):
    """A layered grammar.

    Args:
        root: (non-terminals of layer 0,) probabilities of what a sentence grows from.
        rules: for each layer but the last, (non-terminals, non-terminals of the next, the same) probabilities of pairs.
        emission: for each layer, (non-terminals, words) probabilities of words.

    Raises:
        PerplabError: the shapes do not belong together, what a non-terminal makes does not sum to 1, a word never
            occurs, or there is one word.
    """

    def __init__(self, root: Floats, rules: Sequence[Floats], emission: Sequence[Floats]) -> None:
        _check_shapes(root, rules, emission)
        words = emission[-1].shape[1]
        if words < 2:
            raise PerplabError(f"a vocabulary of {words}", "give two words or more")
        super().__init__(words + 1, 2 ** len(rules), end=words)
        self.root, self.rules = root, tuple(rules)
        self.emission = tuple(np.pad(layer, ((0, 0), (0, 1))) for layer in emission)
        _refuse_unreachable_words(self)

    @classmethod
    def random(
        cls,
        *,
        symbols: int,
        words: int,
        depth: int,
        seed: int,
        early: float = 0.17,
        concentration: tuple[float, float] = (0.1, 0.1),
    ) -> "PCFG":
        """A grammar whose rules are drawn from symmetric Dirichlet distributions.

        Args:
            symbols: non-terminals of a layer.
            words: of the vocabulary, beside the end.
            depth: layers of pairs; sentences have 2 to 2^depth words.
            seed: of the rules.
            early: probability that a non-terminal between the first layer and the last makes a word.
            concentration: of pairs and of words; small values make few of them likely.
        """
        random = np.random.default_rng(seed)
        pairs, emits = concentration
        shares = [0.0, *[early] * (depth - 1), 1.0]
        return cls(
            random.dirichlet(np.ones(symbols)),
            [
                (1 - share) * random.dirichlet(np.full(symbols**2, pairs), symbols).reshape(symbols, symbols, symbols)
                for share in shares[:-1]
            ],
            [share * random.dirichlet(np.full(words, emits), symbols) for share in shares],
        )

    def identity(self) -> str:
        """A digest of the rules."""
        return f"pcfg {digest(self.root, *self.rules, *self.emission)}"

    def draw(self, n: int, random: np.random.Generator) -> Ids:
        """Sentences (n, length) from a generator, all derivations growing a layer at a time."""
        ids = np.full((n, self.length), self.end)
        sentence, place = np.arange(n), np.zeros(n, dtype=np.int64)
        symbol = drawn(self.root[None], sentence * 0, random)
        for layer, emission in enumerate(self.emission):
            rules = self.rules[layer] if layer < len(self.rules) else np.zeros((len(emission), 0, 0))
            made = drawn(np.concatenate((emission, rules.reshape(len(emission), -1)), axis=1), symbol, random)
            is_word = made < self.vocab_size
            ids[sentence[is_word], place[is_word]] = made[is_word]
            pair = made[~is_word] - self.vocab_size
            half = self.length >> (layer + 1)
            symbol = np.concatenate(np.divmod(pair, max(1, rules.shape[2])))
            sentence = np.tile(sentence[~is_word], 2)
            place = np.concatenate((place[~is_word], place[~is_word] + half))
        order = (ids == self.end).argsort(axis=1, kind="stable")
        return np.take_along_axis(ids, order, axis=1)

    def hidden_labels(self, ids: Ids) -> Ids:
        """The likeliest non-terminals of the whole sentence, its first half and its first quarter, (n, 3).

        Raises:
            PerplabError: a span has probability 0 under every non-terminal.
        """
        sentences = self.checked(ids)
        charts = self._inside(sentences)
        words = (sentences != self.end).sum(axis=1)
        rows = np.arange(len(sentences))
        labels = []
        for parts in (1, 2, 4):
            last = np.maximum(1, words // parts) - 1
            inside = np.concatenate([chart[rows, 0, last] for chart in charts], axis=1)
            impossible = np.flatnonzero(np.isneginf(inside).all(axis=1))
            if len(impossible):
                raise PerplabError(f"sentence {impossible[0]} has no parse", "give sentences of the language")
            labels.append(inside.argmax(axis=1))
        return np.stack(labels, axis=1)

    def _after_prefix(self, ids: Ids) -> Floats:
        charts = self._inside(ids)
        joint = self._words_of(self._opening(charts))
        whole = self._whole(charts)
        ended = np.full(len(ids), -math.inf)
        for time in range(1, self.length):
            ended = np.where(ids[:, time - 1] == self.end, ended, whole[:, time])
            joint[:, time, self.end] = ended
        return joint

    def _in_context(self, ids: Ids) -> Floats:
        charts, times = self._inside(ids), np.arange(self.length)
        is_end = ids == self.end
        first = _first(is_end)
        is_first = times == first[:, None]
        second = _first(is_end & ~is_first)
        close = np.where(is_first, second[:, None], first[:, None])  # the first end that is not in the gap itself
        words_from = np.pad((~is_end)[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
        behind = np.take_along_axis(words_from, close, axis=1) - (~is_end & (times > close))
        word_in_gap = np.where(
            is_first[..., None],
            self._words_of(_on_diagonal(self._outside(charts, second))),
            self._words_of(_on_diagonal(self._outside(charts, first))),
        )
        end_in_gap = np.take_along_axis(self._whole(charts), np.minimum(times, close), axis=1)
        joint = np.where(((behind == 0) & (times < close))[..., None], word_in_gap, -math.inf)
        joint[..., self.end] = np.where((behind == 0) & (times >= close - 1), end_in_gap, -math.inf)
        return joint

    def _words_of(self, weights: Sequence[Floats]) -> Floats:
        """(n, length, vocabulary) of words made at each position, from weights (n, length, non-terminals) a layer."""
        made = [log_product(weight, emission) for weight, emission in zip(weights, self.emission, strict=True)]
        return np.logaddexp.reduce(made, axis=0)

    def _whole(self, charts: Sequence[Floats]) -> Floats:
        """Log P of the sentence of the first k words, (n, length + 1) for k from 0."""
        whole = log_sum(charts[0][:, 0] + log(self.root))[..., 0]
        return np.pad(whole, ((0, 0), (1, 0)), constant_values=-math.inf)

    def _inside(self, ids: Ids) -> list[Floats]:
        """For each layer, (n, first, last, non-terminals): log P that a non-terminal makes these words and no other."""
        charts: list[Floats] = []
        for layer in reversed(range(len(self.emission))):
            emission = log(self.emission[layer])
            chart = np.full((len(ids), self.length, self.length, len(emission)), -math.inf)
            diagonal = np.arange(self.length)
            chart[:, diagonal, diagonal] = emission.T[ids]
            for span in _spans(self.length, self.length >> layer):
                pairs = _pairs(charts[0], span)
                rules = self.rules[layer].reshape(len(emission), -1)
                together = np.logaddexp.reduce(pairs, axis=2).reshape(len(ids), -1, rules.shape[1])
                chart[:, span.first, span.last] = log_product(together, rules.T)
            charts.insert(0, chart)
        return charts

    def _opening(self, charts: Sequence[Floats]) -> list[Floats]:
        """For each layer, (n, length, non-terminals): log P of the words before, a non-terminal beginning here."""
        opening = np.full(charts[0].shape[:2] + self.root.shape, -math.inf)
        opening[:, 0] = log(self.root)
        found = [opening]
        for rules, chart in zip(self.rules, charts[1:], strict=True):
            left = log_product(found[-1], rules.sum(axis=2))
            right = np.full_like(left, -math.inf)
            pairs = log_product(found[-1], rules.reshape(len(rules), -1)).reshape(*left.shape, -1)
            for place in range(1, self.length):
                arrived = pairs[:, :place] + chart[:, :place, place - 1, :, None]
                right[:, place] = np.logaddexp.reduce(arrived.reshape(len(left), -1, left.shape[2]), axis=1)
            found.append(np.logaddexp(left, right))
        return found

    def _outside(self, charts: Sequence[Floats], words: Ids) -> list[Floats]:
        """For each layer, (n, first, last, non-terminals): log P of the rest of a sentence of so many words, (n,)."""
        outside = np.full_like(charts[0], -math.inf)
        rows = np.flatnonzero(words > 0)
        outside[rows, 0, words[rows] - 1] = log(self.root)
        found = [outside]
        for layer, rules in enumerate(self.rules):
            chart = charts[layer + 1]
            below = np.full_like(chart, -math.inf)
            for span in _spans(self.length, self.length >> layer):
                parent = found[-1][:, span.first, span.last]
                pair = log_product(parent, rules.reshape(len(rules), -1)).reshape(
                    *parent.shape[:2], 1, *rules.shape[1:]
                )
                left = np.logaddexp.reduce(pair + chart[:, *span.right][..., None, :], axis=-1)
                right = np.logaddexp.reduce(pair + chart[:, *span.left][..., :, None], axis=-2)
                below[:, *span.left] = np.logaddexp(below[:, *span.left], left)
                below[:, *span.right] = np.logaddexp(below[:, *span.right], right)
            found.append(below)
        return found


class _Span(NamedTuple):
    """All spans of one width in a sentence, and all ways to split them.

    Attributes:
        first: (spans,) the first word.
        last: (spans,) the last.
        left: first and last word of the left part, (spans, splits) each.
        right: the same of the right part.
    """

    first: Ids
    last: Ids
    left: tuple[Ids, Ids]
    right: tuple[Ids, Ids]


def _spans(length: int, widest: int) -> Iterator[_Span]:
    """Spans of 2 to `widest` words that two parts of half the widest at most can fill."""
    for width in range(2, widest + 1):
        first = np.arange(length - width + 1)
        last = first + width - 1
        splits = np.arange(max(1, width - widest // 2), min(width - 1, widest // 2) + 1)
        starts, middles, ends = np.broadcast_arrays(first[:, None], first[:, None] + splits, last[:, None])
        yield _Span(first, last, (starts, middles - 1), (middles, ends))


def _pairs(chart: Floats, span: _Span) -> Floats:
    """(n, spans, splits, left non-terminals, right non-terminals)."""
    return chart[:, *span.left][..., :, None] + chart[:, *span.right][..., None, :]


def _on_diagonal(charts: Sequence[Floats]) -> list[Floats]:
    """(n, length, non-terminals) of the spans of one word, for each layer."""
    return [np.diagonal(chart, axis1=1, axis2=2).swapaxes(1, 2) for chart in charts]


def _first(marks: Marks) -> Ids:
    """(n,) where the first mark of each row stands; the length of the row where there is none."""
    return np.where(marks.any(axis=1), marks.argmax(axis=1), marks.shape[1])


def _check_shapes(root: Floats, rules: Sequence[Floats], emission: Sequence[Floats]) -> None:
    sizes = [len(layer) for layer in emission]
    words = {layer.shape[1:] for layer in emission}
    pairs = [(above, below, below) for above, below in pairwise(sizes)]
    if not rules or len(words) != 1 or root.shape != (sizes[0],) or [layer.shape for layer in rules] != pairs:
        raise PerplabError(
            f"layers of {sizes} non-terminals with rules of shapes {[layer.shape for layer in rules]}",
            "give (above, below, below) for each two layers, (non-terminals, words) for each, and a root of the first",
        )
    made = [layer.sum(axis=1) for layer in emission]
    for index, layer in enumerate(rules):
        made[index] = made[index] + layer.sum(axis=(1, 2))
    for name, total in (("the root", root.sum()), *((f"layer {index}", total) for index, total in enumerate(made))):
        if (abs(total - 1) > _ROUNDING).any():
            raise PerplabError(
                f"probabilities of {name} that do not sum to 1", "normalise what each non-terminal makes"
            )


def _refuse_unreachable_words(grammar: PCFG) -> None:
    reached: Marks = grammar.root > 0
    made = np.zeros(grammar.vocab_size, dtype=bool)
    for layer, emission in enumerate(grammar.emission):
        made |= (emission[reached] > 0).any(axis=0)
        if layer < len(grammar.rules):
            used = grammar.rules[layer][reached].sum(axis=0)
            reached = used.sum(axis=0) + used.sum(axis=1) > 0
    missing = np.flatnonzero(~made[: grammar.end])
    if len(missing):
        raise PerplabError(
            f"word {missing[0]} never occurs", "leave it out, or let a non-terminal that is used make it"
        )
