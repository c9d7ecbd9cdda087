"""What a language model has to beat: file compressors, and an n-gram model trained on the same text.

- All figures are bits per byte of UTF-8 text, the unit in which models with different tokenizers can be compared.
- A compressor sees the text it is measured on and nothing else; its headers and checksums count.
- The n-gram model learns from the training side and is measured on the held-out side, as a neural model is: the cost of
  each token that stands for text, by domain. Ends of documents are learnt, but have no bytes and are not counted.
"""

import lzma
import zlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.scoring.ngram import NGramModel
from perplab.text import TokenStore

OVERALL = "all"
_GZIP_CONTAINER = 16 + zlib.MAX_WBITS


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressed_bits_per_byte(texts: Iterable[str]) -> dict[str, float]:
    """Compress the texts, one after another in a single stream.

    Returns:
        Bits for each byte of text, under the command that gives them: `gzip -9` and `xz -9e`.

    Raises:
        PerplabError: there is no text.
    """
    compressors: dict[str, _Compressor] = {
        "gzip -9": zlib.compressobj(9, wbits=_GZIP_CONTAINER),
        "xz -9e": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    }
    plain = 0
    compressed = dict.fromkeys(compressors, 0)
    for text in texts:
        content = text.encode("utf-8")
        plain += len(content)
        for name, compressor in compressors.items():
            compressed[name] += len(compressor.compress(content))
    if plain == 0:
        raise PerplabError("no text to compress", "give at least one text that is not empty")
    for name, compressor in compressors.items():
        compressed[name] += len(compressor.flush())
    return {name: 8 * size / plain for name, size in compressed.items()}


def ngram_bits_per_byte(train_store: TokenStore, heldout_store: TokenStore, order: int) -> dict[str, float]:
    """Train an n-gram model on one store and measure it on another.

    Returns:
        Bits per byte of each held-out domain, and over all of their bytes under `all`.

    Raises:
        PerplabError: the stores were made with different tokenizers, or the order is below 1.
    """
    _refuse_different_tokenizers(train_store, heldout_store)
    model = NGramModel(len(train_store.token_bytes), train_store.bos, order)
    model.fit(_labels(train_store, document) for document in range(len(train_store)))
    domains = len(heldout_store.domains)
    nats, sizes = np.zeros(domains), np.zeros(domains)
    for document in range(len(heldout_store)):
        labels = _labels(heldout_store, document)
        lengths = heldout_store.token_bytes[labels]
        domain = heldout_store.document_domain[document]
        nats[domain] += model.nll(labels)[lengths > 0].sum()
        sizes[domain] += lengths.sum()
    bits = nats / sizes / np.log(2)
    overall = float(nats.sum() / sizes.sum() / np.log(2))
    return dict(zip(heldout_store.domains, bits.tolist(), strict=True)) | {OVERALL: overall}


def _labels(store: TokenStore, document: int) -> npt.NDArray[np.int64]:
    """What is predicted in a document: its text's tokens and its end."""
    start, stop = store.offsets[document : document + 2]
    return np.append(store.tokens[start + 1 : stop].astype(np.int64), store.eos)


def _refuse_different_tokenizers(first: TokenStore, second: TokenStore) -> None:
    same = (first.bos, first.eos) == (second.bos, second.eos) and np.array_equal(first.token_bytes, second.token_bytes)
    if not same:
        raise PerplabError(
            "the two token stores were made with different tokenizers", "build both with the tokenizer of one model"
        )
