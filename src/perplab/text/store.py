"""Tokens of a corpus on disk, tokenised once and memory-mapped ever after.

- A store lies in `tokens/<key>/store` of the cache folder, where the key is made from the corpus's fingerprint, the
  tokenizer's fingerprint and the layout's version: what would give other tokens has another key.
- Each column is a file of little-endian numbers that grows while the corpus streams by, so neither building nor reading
  needs memory for the whole. `index.json` is written last and holds the lengths, by which a damaged file is known.
- Tokens take 16 bits where the vocabulary allows it.
- Builders of one store wait for each other on a file lock; who comes second reads what the first has built.
- While the tokenizer's threads encode one batch, Python writes the last and reads the next.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perplab.artifacts import atomic_folder, cache_folder, read_json, recover_folder, remove_temporaries, write_json
from perplab.errors import PerplabError
from perplab.text.corpus import Corpus
from perplab.text.documents import Document
from perplab.text.tokenizer import boundary_tokens, text_encoder, token_bytes, tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

_FORMAT_VERSION = 1
_BATCH_CHARACTERS = 4 << 20
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True)
class TokenStore:
    """The tokens of a corpus, all documents one after another.

    Attributes:
        tokens: uint16 or uint32, shape (tokens,): for each document the bos token and then its text.
        offsets: int64, shape (documents + 1,): where each document begins in `tokens`, and the end.
        document_bytes: int64, shape (documents,): UTF-8 bytes of each document's text.
        document_domain: int32, shape (documents,): index into `domains`.
        domains: the domains, in the order in which they were first met.
        token_bytes: int64, shape (vocabulary,): UTF-8 bytes that each token stands for.
        bos: id of the token before each document.
        eos: id of the token that ends a document; it is not stored.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    offsets: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    document_domain: npt.NDArray[np.int32]
    domains: tuple[str, ...]
    token_bytes: npt.NDArray[np.int64]
    bos: int
    eos: int

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.document_bytes)

    def documents_of(self, domain: str) -> npt.NDArray[np.int64]:
        """Indices of the documents of one domain, ascending.

        Raises:
            PerplabError: no document has this domain.
        """
        if domain not in self.domains:
            raise PerplabError(f"no document has the domain {domain!r}", f"choose from {', '.join(self.domains)}")
        return np.flatnonzero(self.document_domain == self.domains.index(domain))


def token_store(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", *, folder: Path | None = None, progress: bool = True
) -> TokenStore:
    """Open the token store of a corpus, building it where it does not exist or is damaged.

    Args:
        corpus: what to tokenise.
        tokenizer: a tokenizer with a Rust backend and a bos or eos token.
        folder: where stores are kept; `tokens` in `$PERPLAB_CACHE` or `~/.cache/perplab` by default.
        progress: whether to show a progress bar on standard error while building.

    Raises:
        PerplabError: the corpus is empty or cannot be read, the tokenizer does not fit, or the disk is full.
    """
    from filelock import FileLock

    home = (folder if folder is not None else cache_folder() / "tokens") / _key(corpus, tokenizer)
    path = home / "store"
    lengths = token_bytes(tokenizer)
    if not _is_whole(path):
        try:
            home.mkdir(parents=True, exist_ok=True)
            held = FileLock(home / "lock").acquire()
        except OSError as error:
            raise PerplabError(
                f"cannot write {home} ({error.strerror or error})", "set PERPLAB_CACHE to a folder you own"
            ) from error
        with held:
            recover_folder(path)
            remove_temporaries(home)
            if not _is_whole(path):
                _build(path, corpus, tokenizer, len(lengths), progress)
    return _open(path, lengths)


def _key(corpus: Corpus, tokenizer: "PreTrainedTokenizerBase") -> str:
    parts = (corpus.fingerprint, tokenizer_fingerprint(tokenizer), *boundary_tokens(tokenizer), _FORMAT_VERSION)
    return blake2b(repr(parts).encode("utf-8"), digest_size=16).hexdigest()


def _columns(index: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """(number type, length) of each column file."""
    documents = index["documents"]
    return {
        "tokens": (index["token_type"], index["tokens"]),
        "offsets": ("<i8", documents + 1),
        "document_bytes": ("<i8", documents),
        "document_domain": ("<i4", documents),
    }


def _is_whole(path: Path) -> bool:
    """Whether a built store is here and each file has the length that the index states."""
    try:
        index = read_json(path / "index.json", "")
        sizes = {name: np.dtype(kind).itemsize * length for name, (kind, length) in _columns(index).items()}
        return all((path / f"{name}.bin").stat().st_size == size for name, size in sizes.items())
    except (PerplabError, OSError, KeyError, TypeError):
        return False


def _open(path: Path, lengths: npt.NDArray[np.int64]) -> TokenStore:
    index = read_json(path / "index.json", f"delete {path}")
    columns = {
        name: np.memmap(path / f"{name}.bin", dtype=kind, mode="r", shape=(length,))
        for name, (kind, length) in _columns(index).items()
    }
    return TokenStore(
        **columns, domains=tuple(index["domains"]), token_bytes=lengths, bos=index["bos"], eos=index["eos"]
    )


def _build(path: Path, corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, progress: bool) -> None:
    bos, eos = boundary_tokens(tokenizer)
    token_type = "<u2" if max(vocabulary, bos + 1, eos + 1) <= 1 << 16 else "<u4"
    with atomic_folder(path) as folder:
        with _StoreWriter(folder, token_type, bos) as writer, _progress_bar(corpus.spec, progress) as advance:
            for batch, encodings in _encoded(_batches(corpus), text_encoder(tokenizer)):
                advance(writer.append(batch, encodings))
        write_json(folder / "index.json", writer.index() | {"bos": bos, "eos": eos, "corpus": corpus.spec})


class _StoreWriter:
    """Appends documents to the column files of a new store."""

    def __init__(self, folder: Path, token_type: str, bos: int) -> None:
        self._token_type = token_type
        self._bos = bos
        self._domains: dict[str, int] = {}
        self._documents = 0
        self._tokens = 0
        self._files = {
            name: (folder / f"{name}.bin").open("wb")
            for name in ("tokens", "offsets", "document_bytes", "document_domain")
        }
        self._write("offsets", np.zeros(1, "<i8"))

    def __enter__(self) -> "_StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, batch: list[Document], encodings: list["Encoding"]) -> int:
        """Write a batch of documents and return their UTF-8 bytes."""
        ids: list[int] = []
        ends = []
        for encoding in encodings:
            ids.append(self._bos)
            ids += encoding.ids
            ends.append(self._tokens + len(ids))
        sizes = np.array([len(document.text.encode("utf-8")) for document in batch], dtype="<i8")
        labels = [self._domains.setdefault(document.domain, len(self._domains)) for document in batch]
        self._write("tokens", np.array(ids, dtype=self._token_type))
        self._write("offsets", np.array(ends, dtype="<i8"))
        self._write("document_bytes", sizes)
        self._write("document_domain", np.array(labels, dtype="<i4"))
        self._documents += len(batch)
        self._tokens += len(ids)
        return int(sizes.sum())

    def index(self) -> dict[str, Any]:
        """What is needed to open the columns again."""
        return {
            "documents": self._documents,
            "tokens": self._tokens,
            "token_type": self._token_type,
            "domains": list(self._domains),
        }

    def _write(self, column: str, values: npt.NDArray[Any]) -> None:
        self._files[column].write(values.tobytes())


def _batches(corpus: Corpus) -> Iterator[list[Document]]:
    """Documents in batches large enough to keep every thread busy and small enough to lie in memory."""
    batch: list[Document] = []
    characters = 0
    for document in corpus:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterator[list[Document]], encoder: "Tokenizer"
) -> Iterator[tuple[list[Document], list["Encoding"]]]:
    """Each batch with its encodings, one batch ahead of the reader."""

    def encode(batch: list[Document]) -> list["Encoding"]:
        return encoder.encode_batch_fast([document.text for document in batch], add_special_tokens=False)

    with ThreadPoolExecutor(max_workers=1) as ahead:
        running: tuple[list[Document], Future[list[Encoding]]] | None = None
        for batch in batches:
            following = batch, ahead.submit(encode, batch)
            if running is not None:
                yield running[0], running[1].result()
            running = following
        if running is not None:
            yield running[0], running[1].result()


@contextmanager
def _progress_bar(corpus: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that takes the bytes done since it was last called."""
    from rich.console import Console
    from rich.progress import (
        FileSizeColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), FileSizeColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(f"tokenising {corpus}", total=None)
        yield lambda size: bar.advance(task, size)
