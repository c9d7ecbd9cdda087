"""Corpora: documents to read, as often as wanted, named by one string.

- `builtin:python`, `builtin:python+cpp`, `builtin:all`: what the interpreter and its packages carry (`builtin.py`).
- A path to a .txt, .md, .jsonl, .jsonl.gz, .jsonl.zst or .parquet file, or to a folder; `FOLDER:*.py,*.pyi` reads only
  the files whose names match (`files.py`).
- `hf:DATASET[/CONFIG][:SPLIT]`, streamed through the `datasets` library (`hub.py`).
- A corpus streams: its memory does not grow with its size, and opening one reads no content.
- The split is a property of a document's text alone (`documents.py`), so every corpus has one without being asked.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import get_args

from perplab.errors import PerplabError
from perplab.text.builtin import BuiltinSource
from perplab.text.documents import HELDOUT_FRACTION, Document, Source, Split, is_heldout
from perplab.text.files import open_path
from perplab.text.hub import HubSource

__all__ = ["Corpus", "Document", "Split", "is_heldout", "open_corpus"]


class Corpus:
    """Documents with a domain label. Iterating reads them anew, in the same order each time.

    Args:
        spec: the words this corpus was opened with.
        split: "train", "heldout", or "all" for both sides together.
        source: where the documents come from.
        max_bytes: stop after the document that brings the UTF-8 bytes read to this many; None reads everything.
    """

    def __init__(self, spec: str, split: Split, source: Source, max_bytes: int | None = None) -> None:
        self.spec = spec
        self.split = split
        self._source = source
        self._max_bytes = max_bytes

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when the content, the split or the limit changes; reads no content."""
        parts = (self._source.identity(), self.split, str(self._max_bytes))
        return blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    @property
    def approximate_bytes(self) -> int | None:
        """About how many bytes of text iterating yields, for a progress bar; None where nothing cheap tells."""
        if self._max_bytes is not None:
            return self._max_bytes
        whole = self._source.approximate_bytes()
        share = {"all": 1.0, "heldout": HELDOUT_FRACTION, "train": 1 - HELDOUT_FRACTION}[self.split]
        return None if whole is None else round(whole * share)

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents of this split. Empty documents are passed over.

        Raises:
            PerplabError: the source cannot be read, or this split has no document at all.
        """
        remaining = self._max_bytes
        found = False
        for document in self._source.documents():
            if not document.text or not self._contains(document.text):
                continue
            found = True
            yield document
            if remaining is not None:
                remaining -= len(document.text.encode("utf-8"))
                if remaining <= 0:
                    break
        if not found:
            raise PerplabError(
                f"corpus {self.spec!r} has no document in its split {self.split!r}",
                'give it more text, read it with split "all", or train on it with --heldout naming other text',
            )

    def __repr__(self) -> str:
        return f"Corpus({self.spec!r}, split={self.split!r})"

    def in_split(self, split: Split) -> "Corpus":
        """The same corpus, read in another split."""
        return Corpus(self.spec, _valid_split(split), self._source, self._max_bytes)

    def limited(self, max_bytes: int) -> "Corpus":
        """The first documents of this corpus, up to and with the one that reaches `max_bytes` UTF-8 bytes."""
        return Corpus(self.spec, self.split, self._source, max_bytes)

    def _contains(self, text: str) -> bool:
        return self.split == "all" or is_heldout(text) == (self.split == "heldout")


def open_corpus(spec: str, split: Split = "all") -> Corpus:
    """Open a corpus by name; nothing is read until it is iterated.

    Args:
        spec: `builtin:NAME`, a path, or `hf:DATASET[/CONFIG][:SPLIT]`.
        split: "train", "heldout" (5 % of the documents, chosen by the hash of their text) or "all".

    Raises:
        PerplabError: the path does not exist, the built-in corpus is unknown, the folder has no readable file, or the
            split is none of the three.
    """
    source: Source
    if spec.startswith("builtin:"):
        source = BuiltinSource(spec.removeprefix("builtin:"))
    elif spec.startswith("hf:"):
        source = HubSource(spec.removeprefix("hf:"))
    else:
        source = open_path(spec)
    return Corpus(spec, _valid_split(split), source)


def _valid_split(split: Split) -> Split:
    if split not in get_args(Split):
        raise PerplabError(f"unknown split {split!r}", f"choose one of {', '.join(get_args(Split))}")
    return split
