"""What every token cost, as a table, and the figures that follow from it.

- One row a token, in the order of the text: document, position, token id, byte span in the document's UTF-8, the window
  it was scored in, cost in nats, and whatever other metrics were asked for.
- Bits per byte and perplexity are sums over rows, so any part of the table has them too.
- On disk it is a folder of Parquet files (`score_parts.py`).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perplab.scoring.score_parts import ScoreParts, read_scores


@dataclass(frozen=True)
class TokenScores:
    """Costs of the tokens of some documents.

    Args:
        tokens: columns `document` (row of `documents`), `position` (of the token in its document), `token_id`, `start`
            and `end` (bytes in the document's UTF-8 text), `window` (numbered through the whole table), `nll` (float32,
            nats), then further metrics of `perplab.scoring.TOKEN_METRICS`.
        documents: columns `name`, `domain`, `bytes` (of the UTF-8 text), `words` (runs of it between white space).
        origin: what was scored and how: model, convention, window; plain JSON values.
    """

    tokens: pa.Table
    documents: pa.Table
    origin: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def nll(self) -> npt.NDArray[np.float32]:
        """Cost of each token in nats, shape (tokens,)."""
        return self.tokens["nll"].to_numpy()

    @property
    def nats(self) -> float:
        """Cost of all tokens."""
        return float(self.nll.sum(dtype=np.float64))

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the scored tokens: of all documents, where a convention scores every token."""
        return int((self.tokens["end"].to_numpy() - self.tokens["start"].to_numpy()).sum())

    @property
    def bits_per_byte(self) -> float:
        """Cost of all tokens in bits, divided by their bytes."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Exponentiated mean cost of a token."""
        return math.exp(self.nats / len(self.nll))

    def by_domain(self) -> "dict[str, TokenScores]":
        """The same scores, a part for each domain."""
        domains = self.documents["domain"].to_numpy(zero_copy_only=False)
        owner = self.tokens["document"].to_numpy()
        parts = {}
        for domain in dict.fromkeys(domains):
            rows = np.flatnonzero(domains == domain)
            renumbered = np.full(len(domains), -1, dtype=np.int32)
            renumbered[rows] = np.arange(len(rows), dtype=np.int32)
            tokens = self.tokens.filter(renumbered[owner] >= 0)
            column = pa.array(renumbered[tokens["document"].to_numpy()])
            tokens = tokens.set_column(tokens.column_names.index("document"), "document", column)
            windows = np.unique(tokens["window"].to_numpy(), return_inverse=True)[1].astype(np.int32)
            tokens = tokens.set_column(tokens.column_names.index("window"), "window", pa.array(windows))
            parts[str(domain)] = TokenScores(tokens, self.documents.take(rows), self.origin)
        return parts

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the tables and their origin into a new or empty `folder`.

        Raises:
            PerplabError: the folder holds something else, or cannot be written.
        """
        parts = ScoreParts(folder, self.origin)
        parts.add(self.tokens, self.documents)
        parts.finish()

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "TokenScores":
        """The scores in a folder.

        Raises:
            PerplabError: there are none, they are unfinished, damaged, or of another version.
        """
        return cls(*read_scores(folder))
