"""Rows of tokens whose answers stand in the row: what an architecture can look up, copy, filter, compress or memorise.

Decisions:
- Every task returns `(input_ids, labels)`, both int64 (rows, length). A label is the target of its own position,
  already shifted: what the model is to say after reading up to there. Positions without an answer hold
  `IGNORED_LABEL`.
- Sizes are those the tasks were published with: MQAR (Arora et al., arXiv 2312.04927) and the six MAD tasks (Poli et
  al., arXiv 2403.17844), each key asked for whenever it returns (MAD's multi-query form).
- In all but two tasks the answer follows from what the row shows before the question. `memorization` asks for a table
  that is the same in every row of every batch, and the labels of `compression` are the row itself, to be read out of
  the hidden state of its last position.
"""

import numpy as np
from numpy.typing import NDArray

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL

Rows = tuple[NDArray[np.int64], NDArray[np.int64]]


def mqar(
    rng: np.random.Generator, rows: int, *, length: int, pairs: int, vocab_size: int = 8192, power: float = 0.01
) -> Rows:
    """Multi-query associative recall: pairs of key and value, then each key once, to be answered by its value.

    Keys are the first half of the vocabulary, values the second; a row repeats none. Queries stand at even distances
    from the pairs, and their gaps i follow p(i) ~ i^(power - 1). All other positions hold random tokens.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row; even.
        pairs: pairs in a row.
        vocab_size: tokens in all.
        power: of the gaps; 1 spreads them evenly.

    Raises:
        PerplabError: the row is odd or too short, or the vocabulary too small, for so many pairs.
    """
    if length % 2 or not 4 <= 4 * pairs <= length:
        raise PerplabError(
            f"{pairs} pairs in a row of {length} tokens",
            "give one pair or more and an even length of 4 tokens a pair or more",
        )
    keys_in_all = vocab_size // 2
    if pairs > keys_in_all:
        raise PerplabError(f"{pairs} pairs of a vocabulary of {vocab_size}", f"give {2 * pairs} tokens or more")
    keys = _without_replacement(rng, rows, np.ones(keys_in_all), pairs)
    values = keys_in_all + _without_replacement(rng, rows, np.ones(vocab_size - keys_in_all), pairs)
    gaps = np.arange(1, (length - 2 * pairs) // 2 + 1, dtype=np.float64)
    places = 2 * pairs + 2 * _without_replacement(rng, rows, gaps ** (power - 1), pairs)
    input_ids = rng.integers(vocab_size, size=(rows, length))
    input_ids[:, 0 : 2 * pairs : 2] = keys
    input_ids[:, 1 : 2 * pairs : 2] = values
    np.put_along_axis(input_ids, places, keys, axis=1)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    np.put_along_axis(labels, places, values, axis=1)
    return input_ids, labels


def induction(rng: np.random.Generator, rows: int, *, length: int, vocab_size: int = 256) -> Rows:
    """Different tokens, then the same ones from a random place on and around: each is to be followed as it was before.

    How far back a token stood differs from row to row, so it has to be found by what it is. The token that stood last
    has no answer: what followed it was the repetition.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row; even.
        vocab_size: tokens in all.

    Raises:
        PerplabError: the length is odd, or half of it is more than the vocabulary.
    """
    half = length // 2
    if length % 2 or not 2 <= half <= vocab_size:
        raise PerplabError(
            f"rows of {length} tokens that repeat once, out of {vocab_size}",
            f"give an even length from 4 to {2 * vocab_size}",
        )
    first = _without_replacement(rng, rows, np.ones(vocab_size), half)
    turned = (np.arange(half) + rng.integers(half, size=(rows, 1))) % half
    again = np.take_along_axis(first, turned, axis=1)
    followers = np.take_along_axis(first, (turned + 1) % half, axis=1)
    answers = np.where(turned == half - 1, IGNORED_LABEL, followers)
    return np.hstack([first, again]), np.hstack([np.full_like(first, IGNORED_LABEL), answers])


def in_context_recall(rng: np.random.Generator, rows: int, *, length: int = 128, vocab_size: int = 16) -> Rows:
    """Pairs drawn with replacement from a table that each row has its own; a key that returns asks for its value.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row; even.
        vocab_size: the first half are keys, the second values.

    Raises:
        PerplabError: the length is odd, or the vocabulary has no key or no value.
    """
    return _recall(rng, rows, length, vocab_size, noise_tokens=0, noise=0.0)


def noisy_recall(
    rng: np.random.Generator,
    rows: int,
    *,
    length: int = 128,
    vocab_size: int = 16,
    noise_tokens: int = 16,
    noise: float = 0.2,
) -> Rows:
    """In-context recall with some of the pairs replaced by tokens that mean nothing.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row; even.
        vocab_size: of keys and values; noise tokens come after it.
        noise_tokens: how many there are.
        noise: the share of pairs that they replace.

    Raises:
        PerplabError: the length is odd, or there are no keys, values or noise tokens.
    """
    if noise_tokens < 1 or not 0 <= noise <= 1:
        raise PerplabError(
            f"a share of {noise} noise out of {noise_tokens} tokens", "give a share from 0 to 1, and one token or more"
        )
    return _recall(rng, rows, length, vocab_size, noise_tokens=noise_tokens, noise=noise)


def fuzzy_recall(
    rng: np.random.Generator, rows: int, *, length: int = 128, vocab_size: int = 16, longest_motif: int = 3
) -> Rows:
    """In-context recall where keys and values are motifs of one to three tokens; the row is padded in front.

    The last token is the padding. Of the others the first half are for keys and the rest for values, so a motif ends
    where the other kind begins. Every token of a returning key's value is asked for.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row.
        vocab_size: tokens in all.
        longest_motif: most tokens in a key or a value; a motif repeats none.

    Raises:
        PerplabError: the vocabulary is too small for motifs so long, or the row for two pairs of them.
    """
    keys = np.arange((vocab_size - 1) // 2)
    values = np.arange(len(keys), vocab_size - 1)
    if not 1 <= longest_motif <= len(keys):
        raise PerplabError(
            f"motifs of up to {longest_motif} tokens out of {vocab_size}",
            f"give motifs of 1 or more, and {2 * longest_motif + 1} tokens or more",
        )
    if length < 4 * longest_motif:
        raise PerplabError(f"motifs of {longest_motif} in a row of {length}", f"give a length of {4 * longest_motif}")
    input_ids = np.full((rows, length), vocab_size - 1, dtype=np.int64)
    labels = np.full((rows, length), IGNORED_LABEL, dtype=np.int64)
    for row, answers in zip(input_ids, labels, strict=True):
        tokens, targets = _motifs(rng, length, keys, values, longest_motif)
        row[length - len(tokens) :] = tokens
        answers[length - len(tokens) :] = targets
    return input_ids, labels


def selective_copy(
    rng: np.random.Generator, rows: int, *, length: int = 256, vocab_size: int = 16, copied: int = 16
) -> Rows:
    """Tokens scattered among blanks, a mark, and as many blanks as tokens, to be answered by them in order.

    The last token of the vocabulary is the mark, the one before it the blank.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row.
        vocab_size: tokens in all.
        copied: tokens to copy.

    Raises:
        PerplabError: the row is too short, or the vocabulary holds nothing but mark and blank.
    """
    before = length - copied - 1
    if before < copied or copied < 1 or vocab_size < 3:
        raise PerplabError(
            f"{copied} of {vocab_size} tokens copied in a row of {length}",
            f"give 1 or more, a length of {2 * copied + 1} or more, and 3 tokens or more",
        )
    mark, blank = vocab_size - 1, vocab_size - 2
    tokens = rng.integers(blank, size=(rows, copied))
    places = np.sort(_without_replacement(rng, rows, np.ones(before), copied), axis=1)
    input_ids = np.full((rows, length), blank, dtype=np.int64)
    np.put_along_axis(input_ids, places, tokens, axis=1)
    input_ids[:, before] = mark
    labels = np.full_like(input_ids, IGNORED_LABEL)
    labels[:, before + 1 :] = tokens
    return input_ids, labels


def compression(rng: np.random.Generator, rows: int, *, length: int = 32, vocab_size: int = 16) -> Rows:
    """Random tokens and a mark, in whose hidden state the whole row has to be found again: the labels are the row.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row, the mark among them.
        vocab_size: tokens in all; the last is the mark.

    Raises:
        PerplabError: nothing stands before the mark.
    """
    if length < 2 or vocab_size < 2:
        raise PerplabError(f"rows of {length} out of {vocab_size} tokens", "give 2 or more of each")
    input_ids = rng.integers(vocab_size - 1, size=(rows, length))
    input_ids[:, -1] = vocab_size - 1
    return input_ids, input_ids.copy()


def memorization(
    rng: np.random.Generator, rows: int, *, length: int = 32, vocab_size: int = 256, table_seed: int = 0
) -> Rows:
    """Keys, each followed by a mark that asks for the key's value in a table that no row shows.

    Args:
        rng: source of the rows.
        rows: how many.
        length: tokens in a row; even.
        vocab_size: tokens in all; the last is the mark, the first half of the others are keys.
        table_seed: decides the table, whatever `rng` says.

    Raises:
        PerplabError: the length is odd, or there is no key.
    """
    keys = (vocab_size - 1) // 2
    if length % 2 or keys < 1:
        raise PerplabError(f"rows of {length} out of {vocab_size} tokens", "give an even length and 3 tokens or more")
    table = keys + np.random.default_rng(table_seed).permutation(vocab_size - 1 - keys)[:keys]
    input_ids = np.full((rows, length), vocab_size - 1, dtype=np.int64)
    input_ids[:, ::2] = rng.integers(keys, size=(rows, length // 2))
    labels = np.full_like(input_ids, IGNORED_LABEL)
    labels[:, 1::2] = table[input_ids[:, ::2]]
    return input_ids, labels


def _without_replacement(
    rng: np.random.Generator, rows: int, weights: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    """`count` different indices a row, as if drawn one after the other in proportion to their weights.

    Each index waits for an exponential time of its weight's rate; the first to arrive are the draw.
    """
    arrivals = rng.exponential(size=(rows, len(weights))) / weights
    soonest = np.argpartition(arrivals, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(arrivals, soonest, axis=1), axis=1)
    drawn: NDArray[np.int64] = np.take_along_axis(soonest, order, axis=1)
    return drawn


def _recall(
    rng: np.random.Generator, rows: int, length: int, vocab_size: int, *, noise_tokens: int, noise: float
) -> Rows:
    keys_in_all = vocab_size // 2
    if length % 2 or length < 4 or keys_in_all < 1:
        raise PerplabError(
            f"recall in rows of {length} out of {vocab_size} tokens", "give an even length of 4 or more, and 2 tokens"
        )
    pairs = length // 2
    table = rng.integers(keys_in_all, vocab_size, size=(rows, keys_in_all))
    keys = rng.integers(keys_in_all, size=(rows, pairs))
    shown = rng.random((rows, pairs)) >= noise
    every = np.arange(rows)
    early = rng.integers(pairs - 1, size=rows)
    shown[every, early] = shown[:, -1] = True
    keys[:, -1] = keys[every, early]  # whatever the draw, the last key has been seen
    values = np.take_along_axis(table, keys, axis=1)
    returning = shown & _seen_before(np.where(shown, keys, IGNORED_LABEL))
    input_ids = np.stack([keys, values], axis=2)
    if noise_tokens:
        meaningless = rng.integers(vocab_size, vocab_size + noise_tokens, size=(rows, pairs, 2))
        input_ids = np.where(shown[..., None], input_ids, meaningless)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    labels[..., 0] = np.where(returning, values, IGNORED_LABEL)
    return input_ids.reshape(rows, length), labels.reshape(rows, length)


def _seen_before(entries: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the same entry stands further left in its row."""
    order = np.argsort(entries, axis=1, kind="stable")
    ordered = np.take_along_axis(entries, order, axis=1)
    repeats = np.zeros(entries.shape, dtype=np.bool_)
    repeats[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    seen = np.empty_like(repeats)
    np.put_along_axis(seen, order, repeats, axis=1)
    return seen


def _motifs(
    rng: np.random.Generator, length: int, keys: NDArray[np.int64], values: NDArray[np.int64], longest: int
) -> tuple[list[int], list[int]]:
    """Pairs of motifs until the row is nearly full, then the first key again, with the targets of each token."""
    table: dict[tuple[int, ...], tuple[int, ...]] = {}
    tokens: list[int] = []
    targets: list[int] = []

    def motif(alphabet: NDArray[np.int64]) -> tuple[int, ...]:
        return tuple(rng.permutation(alphabet)[: rng.integers(1, longest + 1)].tolist())

    def say(key: tuple[int, ...]) -> None:
        is_known = key in table
        value = table.setdefault(key, motif(values))
        tokens.extend((*key, *value))
        asked = value if is_known else [IGNORED_LABEL] * len(value)
        targets.extend([*[IGNORED_LABEL] * (len(key) - 1), *asked, IGNORED_LABEL])

    while len(tokens) <= length - 4 * longest:
        say(motif(keys))
    say(next(iter(table)))
    return tokens, targets
