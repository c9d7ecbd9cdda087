"""Which bytes of a text each of its tokens stands for.

- Spans are contiguous and ascending, and together cover the whole text, for every tokenizer: costs summed over spans
  are costs of the text, whatever a tokenizer hides, splits or drops.
- Where the bytes of a text's tokens add up to the bytes of the text, they are the spans. That is every byte-level
  tokenizer and every SentencePiece-style one that keeps its text, also where a character is split over tokens.
- A space that the tokenizer puts before the text is no byte of the text, and is taken off the first token.
- Elsewhere (words, text changed by a normaliser) spans follow the encoder's character offsets. Characters that no token
  claims belong to the token after them; a character that several claim belongs to the first.
- Tokens that the tokenizer adds around the text stand for no bytes. Special tokens spelled in the text stand for their
  spelling.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.text import token_bytes

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Bytes = npt.NDArray[np.int64]

_DUMMY_SPACES = ("▁", "Ġ")


def definite_token_bytes(tokenizer: "PreTrainedTokenizerBase") -> Bytes | None:
    """Bytes of each token of the vocabulary, (vocabulary,); None where tokens do not stand for definite bytes."""
    try:
        return token_bytes(tokenizer)
    except PerplabError:
        return None


def byte_spans(text: str, encoding: "Encoding", lengths: Bytes | None) -> tuple[Bytes, Bytes]:
    """Spans of a text's tokens in its UTF-8.

    Args:
        text: the text that was encoded.
        encoding: its tokens, as the tokenizer's Rust backend gives them.
        lengths: `definite_token_bytes` of the tokenizer, which is made once for many texts.

    Returns:
        First byte, and the byte after the last, of each token, (tokens,) both.
    """
    size = len(text.encode("utf-8"))
    ends = None if lengths is None else _ends_by_length(text, encoding, lengths, size)
    if ends is None:
        ends = _ends_by_offset(text, encoding, size)
    return np.concatenate((np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1])), ends


def _ends_by_length(text: str, encoding: "Encoding", lengths: Bytes, size: int) -> Bytes | None:
    """Ends by the bytes of each token; None where they do not add up to the text."""
    sizes = lengths[np.array(encoding.ids, dtype=np.int64)]
    in_text = ~_added(encoding)
    sizes[~in_text] = 0
    spelled = np.flatnonzero(in_text & (sizes == 0))
    if len(spelled):
        offsets = _byte_offsets(text, encoding)[spelled]
        sizes[spelled] = offsets[:, 1] - offsets[:, 0]
    if sizes.sum() == size + 1:
        first = int(np.argmax(in_text))
        if encoding.tokens[first].startswith(_DUMMY_SPACES):
            sizes[first] -= 1
    return np.cumsum(sizes) if sizes.sum() == size else None


def _ends_by_offset(text: str, encoding: "Encoding", size: int) -> Bytes:
    """Ends by the characters that each token claims."""
    in_text = ~_added(encoding)
    ends = np.where(in_text, _byte_offsets(text, encoding)[:, 1], 0)
    if in_text.any():
        ends[np.flatnonzero(in_text)[-1]] = size
    covered: Bytes = np.maximum.accumulate(ends)
    return covered


def _added(encoding: "Encoding") -> npt.NDArray[np.bool_]:
    """Which tokens the tokenizer added to those of the text."""
    return np.array(encoding.special_tokens_mask, dtype=bool)


def _byte_offsets(text: str, encoding: "Encoding") -> Bytes:
    """The encoder's offsets counted in bytes of UTF-8, (tokens, 2)."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    before = np.concatenate(([0], np.cumsum(sizes)))
    byte_offsets: Bytes = before[np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)]
    return byte_offsets
