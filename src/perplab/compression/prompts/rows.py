"""Rows of text to train on: equally long, each from within one document.

- Rows are cut from each document one after another from its beginning; what is left over, and documents shorter than a
  row, are not read.
- A step's rows depend on the seed and the step alone, so training resumes from the number of its step.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.text import TokenStore

Seed = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a store's documents.

    Args:
        store: the tokens.
        starts: (rows,) where each row begins in `store.tokens`.
        domain: (rows,) index into `store.domains`.
        length: tokens of a row.
    """

    store: TokenStore
    starts: npt.NDArray[np.int64]
    domain: npt.NDArray[np.int32]
    length: int

    @classmethod
    def of(cls, store: TokenStore, length: int) -> "Rows":
        """All rows of a store.

        Raises:
            PerplabError: every document is shorter than a row.
        """
        tokens = np.diff(store.offsets)
        counts = tokens // length
        if not counts.any():
            raise PerplabError(
                f"no document has {length} tokens, the longest has {tokens.max()}", "give longer text or a smaller row"
            )
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(np.asarray(store.offsets)[:-1], counts) + number * length
        return cls(store, starts, np.repeat(np.asarray(store.document_domain), counts), length)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that have a row, those with the most rows first."""
        counts = np.bincount(self.domain, minlength=len(self.store.domains))
        return tuple(self.store.domains[index] for index in np.argsort(-counts, kind="stable") if counts[index])

    def of_domain(self, name: str) -> "Rows":
        """The rows of one domain."""
        chosen = self.domain == self.store.domains.index(name)
        return replace(self, starts=self.starts[chosen], domain=self.domain[chosen])

    def tokens(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """(indices, length) token ids, int64."""
        places = self.starts[indices][:, None] + np.arange(self.length)
        return torch.from_numpy(np.asarray(self.store.tokens)[places].astype(np.int64))

    def batch(self, seed: Seed, step: int, size: int) -> Tensor:
        """(size, length) token ids of one step: the next rows of an order that is drawn anew for each epoch."""
        drawn = np.arange(step * size, (step + 1) * size)
        epochs = drawn // len(self)
        orders = {epoch: np.random.default_rng((*seed, int(epoch))).permutation(len(self)) for epoch in set(epochs)}
        return self.tokens(np.array([orders[epoch][row % len(self)] for epoch, row in zip(epochs, drawn, strict=True)]))
