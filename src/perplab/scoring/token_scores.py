"""What every token cost, as a table, and the figures that follow from it.

One row a token, in the order of the text: document, token id, byte span in the document's UTF-8, cost in nats. Bits per
byte and perplexity are sums over rows, so any part of the table has them too.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True)
class TokenScores:
    """Costs of the tokens of some documents.

    Args:
        tokens: columns `document` (int32, row of `documents`), `token_id` (int32), `start` and `end` (int64, bytes in
            the document's UTF-8 text), `nll` (float32, nats).
        documents: columns `name`, `domain` (strings) and `bytes` (int64).
    """

    tokens: pa.Table
    documents: pa.Table

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
        """UTF-8 bytes of all documents."""
        return int(self.documents["bytes"].to_numpy().sum())

    @property
    def bits_per_byte(self) -> float:
        """Cost of all tokens in bits, divided by the bytes of the text."""
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
            parts[str(domain)] = TokenScores(
                tokens.set_column(tokens.column_names.index("document"), "document", column), self.documents.take(rows)
            )
        return parts
