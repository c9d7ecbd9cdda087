"""What a corpus is made of: documents, and the rule that sets some of them apart.

- One split rule serves every corpus: a document is held out if and only if the hash of its text falls in the lowest
  5 %. Identical documents land on the same side whatever file, corpus or machine they come from, so text seen in
  training cannot be met again, word for word, in evaluation.
- The hash is BLAKE2b of the UTF-8 bytes, so that the side never depends on Python's hash seed or version.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

Split = Literal["train", "heldout", "all"]

HELDOUT_FRACTION = 0.05
_HELDOUT_BELOW = int(HELDOUT_FRACTION * 2**64)


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        text: the text, exactly as it stood.
        domain: the kind of text, the label that results and mixtures are grouped by.
        name: where it came from, such as `asyncio/base_events.py` or `shakespeare.txt#3`.
    """

    text: str
    domain: str
    name: str


class Source(Protocol):
    """Where a corpus gets its documents from."""

    def identity(self) -> str:
        """Text that changes when the content may have changed, found without reading the content."""

    def approximate_bytes(self) -> int | None:
        """About how much text there is; None where nothing cheap tells."""

    def documents(self) -> Iterator[Document]:
        """All documents, in the same order each time."""


def is_heldout(text: str) -> bool:
    """Whether a document with this text belongs to the held-out side."""
    digest = blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < _HELDOUT_BELOW
