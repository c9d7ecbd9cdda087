"""A corpus as the batches on which flatness is measured, each row with the document it is from.

Each document begins with the tokenizer's bos token and is cut into windows that do not overlap, so every token is
predicted once. Rows of similar length share a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from perplab.errors import PerplabError
from perplab.laws.flatness.batches import Batch
from perplab.models import LanguageModel
from perplab.models.position_limit import position_limit
from perplab.scoring.streams import DocumentEncoder, streams
from perplab.scoring.windows import Windows, cut, fit
from perplab.text import Document
from perplab.text.packing import IGNORED_LABEL

WINDOW = 128
"""Tokens of a row, less where a model has fewer positions."""
_UNLIMITED = 2**31


@dataclass(frozen=True, eq=False)
class TextBatches:
    """A text in batches.

    Attributes:
        batches: the rows.
        documents: for each batch the number of each row's document, (rows,).
    """

    batches: Sequence[Batch]
    documents: Sequence[npt.NDArray[np.int64]]


def read_batches(
    language_model: LanguageModel,
    documents: Iterable[Document],
    *,
    window: int | None = None,
    rows: int = 8,
    tokens: int | None = None,
) -> TextBatches:
    """The documents as rows for a model.

    Args:
        language_model: whose tokenizer and positions decide.
        documents: the text.
        window: tokens of a row; None for `WINDOW`, or as many as the model has positions.
        rows: of a batch.
        tokens: predict about so many, in rows spread evenly over the text; None for all.

    Raises:
        PerplabError: the window is longer than the model's positions or below 1, or the text has nothing to predict.
    """
    encoder = DocumentEncoder(language_model.tokenizer, "bos")
    fitted = fit(Windows(WINDOW), position_limit(language_model.model.config) or _UNLIMITED, window, None)
    pieces: list[tuple[int, Tensor]] = []
    for number, (document,) in enumerate(streams(documents, encoder, "each document alone", 0)):
        ids = torch.from_numpy(np.concatenate((document.opening, document.token_ids)).astype(np.int64))
        pieces += [(number, ids[part.begin : part.end]) for part in cut(len(ids), fitted)]
    if not pieces:
        raise PerplabError("the text has no token to predict", "give a text that is not empty")
    if tokens is not None:
        kept = max(1, min(len(pieces), tokens // fitted.length))
        pieces = [pieces[int(place)] for place in np.unique(np.linspace(0, len(pieces) - 1, kept).astype(int))]
    pieces.sort(key=lambda piece: len(piece[1]))
    chunks = [pieces[start : start + rows] for start in range(0, len(pieces), rows)]
    return TextBatches(
        [_batch([ids for _, ids in chunk]) for chunk in chunks],
        [np.array([number for number, _ in chunk]) for chunk in chunks],
    )


def _batch(rows: Sequence[Tensor]) -> Batch:
    inputs = pad_sequence([row[:-1] for row in rows], batch_first=True)
    return Batch(inputs, pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORED_LABEL))
