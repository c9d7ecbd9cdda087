"""Rows in which keys are bound to value after value, then asked for their last: what must overwrite, not add.

Write-once recall can be solved by adding up; here the values that a key had before stand in the way.
"""

import numpy as np

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.recall_tasks import Rows


def rebinding(rng: np.random.Generator, rows: int, *, keys: int, bindings: int, vocab_size: int) -> Rows:
    """Keys each bound to values one after the other, in shuffled order; then every key, to be answered by its last.

    Args:
        rng: source of the rows.
        rows: how many.
        keys: in a row.
        bindings: of each key.
        vocab_size: tokens; the first half are keys, the second values.

    Returns:
        Input ids and labels, (rows, 2 * keys * bindings + 2 * keys); labels are aligned as in `recall_tasks`.

    Raises:
        PerplabError: there are no keys or bindings, or more keys than half of the vocabulary.
    """
    if not 1 <= keys <= vocab_size // 2 or bindings < 1:
        raise PerplabError(
            f"{keys} keys bound {bindings} times out of {vocab_size} tokens",
            f"give 1 or more of each, and {2 * keys} tokens or more",
        )
    half, pairs = vocab_size // 2, keys * bindings
    chosen = rng.permuted(np.tile(np.arange(half), (rows, 1)), axis=1)[:, :keys]
    order = rng.permuted(np.tile(np.repeat(np.arange(keys), bindings), (rows, 1)), axis=1)
    values = rng.integers(half, vocab_size, size=(rows, pairs))
    last = np.zeros((rows, keys), dtype=np.int64)
    for pair in range(pairs):
        np.put_along_axis(last, order[:, pair, None], values[:, pair, None], axis=1)
    asked = rng.permuted(np.tile(np.arange(keys), (rows, 1)), axis=1)
    answers = np.take_along_axis(last, asked, axis=1)
    written = np.stack([np.take_along_axis(chosen, order, axis=1), values], axis=2).reshape(rows, -1)
    read = np.stack([np.take_along_axis(chosen, asked, axis=1), answers], axis=2).reshape(rows, -1)
    input_ids = np.concatenate([written, read], axis=1)
    labels = np.full_like(input_ids, IGNORED_LABEL)
    labels[:, written.shape[1] :: 2] = answers
    return input_ids, labels
