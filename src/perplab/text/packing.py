"""Documents packed into blocks of one length, without waste and without one document seeing another.

- The chosen documents lie one after another in a single stream of positions. A document of tokens t1..tn contributes
  the inputs [bos, t1, ..., tn] and the labels [t1, ..., tn, eos]: each token and each end is predicted exactly once.
- The stream is cut every `block_size` positions. Only the last block can have an unfilled rest.
- Position ids restart at each document and at each block, since attention may look neither into another document nor
  outside the block. In the unfilled rest every position id is 0, so that each padding token attends to itself alone.
- A block is computed when it is asked for, from the slices of the store that it needs.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.text.store import TokenStore

IGNORED_LABEL = -100


class Block(NamedTuple):
    """One row for a model, each array of shape (block_size,)."""

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]


class PackedBlocks:
    """Blocks of a store's documents.

    Args:
        store: the tokens.
        documents: indices of the documents to pack, in this order; None packs all in the order of the store.
        block_size: positions a block.

    Attributes:
        num_tokens: scored positions in all, one for each token and one for each document's end.

    Raises:
        PerplabError: no document is chosen, an index is outside the store, or the block size is not positive.
    """

    def __init__(self, store: TokenStore, documents: npt.NDArray[np.integer] | None, block_size: int) -> None:
        count = len(store.offsets) - 1
        chosen = np.arange(count) if documents is None else np.asarray(documents, dtype=np.int64)
        if block_size < 1:
            raise PerplabError(f"block size {block_size} is not positive", "give 1 or more")
        if len(chosen) == 0:
            raise PerplabError("no document to pack", "choose at least one document of the store")
        if chosen.min() < 0 or chosen.max() >= count:
            raise PerplabError(
                f"a document index is outside the store's {count} documents", "use indices of this store"
            )
        self.store = store
        self.block_size = block_size
        self._first_token = np.asarray(store.offsets)[chosen]
        lengths = np.asarray(store.offsets)[chosen + 1] - self._first_token
        self._starts = np.concatenate(([0], np.cumsum(lengths)))
        self.num_tokens = int(self._starts[-1])

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.num_tokens // self.block_size)

    def block(self, index: int) -> Block:
        """Block number `index`, counted from 0; negative indices are refused.

        Raises:
            IndexError: there is no such block.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        base = index * self.block_size
        end = min(base + self.block_size, self.num_tokens)
        input_ids = np.full(self.block_size, self.store.eos, dtype=np.int64)
        labels = np.full(self.block_size, IGNORED_LABEL, dtype=np.int64)
        position_ids = np.zeros(self.block_size, dtype=np.int64)
        start = base
        document = int(np.searchsorted(self._starts, base, side="right")) - 1
        while start < end:
            document_end = int(self._starts[document + 1])
            stop = min(document_end, end)
            length = stop - start
            source = int(self._first_token[document] + start - self._starts[document])
            tokens = self.store.tokens[source : source + length + 1]
            row = slice(start - base, stop - base)
            input_ids[row] = tokens[:length]
            labels[row.start : row.stop - 1] = tokens[1:length]
            labels[row.stop - 1] = self.store.eos if stop == document_end else tokens[length]
            position_ids[row] = np.arange(length)
            start = stop
            document += 1
        return Block(input_ids, labels, position_ids)
