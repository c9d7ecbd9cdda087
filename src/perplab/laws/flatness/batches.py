"""Rows of tokens and what each position has to predict: the text on which a model's flatness is measured.

- Rows are padded on the right and nothing is masked: what stands to the right of a token cannot change what a causal
  model predicts there, and a position without a label has no part in the loss.
- Rows may be packed: positions that restart at 0 separate documents.
- The loss is the mean over all labels of all batches, so how rows are shared out over batches changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that go through a model together.

    Args:
        input_ids: (rows, length).
        labels: (rows, length), what follows each input; -100 is not predicted.
        position_ids: (rows, length); 0 opens a document. None: each row is one document.

    Raises:
        PerplabError: the shapes differ.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit."""
        others = [self.labels] if self.position_ids is None else [self.labels, self.position_ids]
        if self.input_ids.ndim != 2 or any(other.shape != self.input_ids.shape for other in others):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (self.input_ids, *others))
            raise PerplabError(f"a batch of tensors of the shapes {shapes}", "give all of them as (rows, length)")

    @classmethod
    def of_rows(cls, token_ids: Tensor) -> Self:
        """A batch that predicts all tokens of `token_ids`, (rows, length + 1), but the first of each row."""
        return cls(token_ids[:, :-1], token_ids[:, 1:])

    @property
    def predicted(self) -> Tensor:
        """(rows, length) booleans: which positions have a label."""
        return self.labels != IGNORED_LABEL

    def rows(self) -> Iterator["Batch"]:
        """Each row as a batch of its own."""
        for row in range(len(self.input_ids)):
            at = slice(row, row + 1)
            positions = None if self.position_ids is None else self.position_ids[at]
            yield Batch(self.input_ids[at], self.labels[at], positions)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return Batch(self.input_ids.to(device), self.labels.to(device), positions)


def predictions(batches: Sequence[Batch]) -> int:
    """How many labels the batches have.

    Raises:
        PerplabError: they have none.
    """
    count = sum(int(batch.predicted.sum()) for batch in batches)
    if count == 0:
        raise PerplabError("the batches have nothing to predict", "give rows of two tokens or more")
    return count
