"""Tokenizers: training a byte-level BPE, and what the rest of perplab must know of any tokenizer.

- Byte-level BPE without a normaliser: every string is encoded, and decoding gives it back exactly.
- Pieces are cut in the manner of GPT-4: a word takes one leading space or sign with it (`.append`, `_name`), runs of
  spaces stay whole so that indentation costs one token, line ends stay with the signs and blanks before them. There is
  no rule for English contractions, because it would cut quoted strings in code ('s|tring').
- Each digit is a token of its own. The same number is then spelled the same way wherever it stands, which arithmetic
  needs, and no part of a small vocabulary goes to frequent numbers.
- Combining marks belong to the word they mark, so that scripts written with them are not cut at every vowel.
- One special token, `<|endoftext|>`, begins, ends and pads; nothing is added unless the caller adds it.
- Text that merely spells a special token is text. `text_encoder` reads it so, and a document's tokens therefore always
  stand for its bytes.
"""

import json
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.text.documents import Document

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")

_PIECES = "|".join(
    (
        r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+",  # a word with the blank or sign before it
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # a run of signs, with the line end after it
        r"\s*[\r\n]+",  # blank lines
        r"\s+(?!\S)",  # blanks before a word, but for the last one, which the word takes
        r"\s+",
    )
)


def train_tokenizer(
    documents: Iterable[Document], vocab_size: int, *, min_frequency: int = 2, progress: bool = False
) -> "PreTrainedTokenizerFast":
    """Train a lossless byte-level BPE tokenizer.

    Args:
        documents: the text to learn merges from, read once as a stream.
        vocab_size: number of tokens, the 256 bytes and `<|endoftext|>` among them. Text with too few repeated pairs
            gives a smaller vocabulary.
        min_frequency: how often a pair must occur to be merged.
        progress: whether to show the library's own progress bar.

    Returns:
        A tokenizer that `save_pretrained` writes and `AutoTokenizer` reads without perplab.

    Raises:
        PerplabError: `vocab_size` does not hold the 256 bytes and the special token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 1:
        raise PerplabError(
            f"a vocabulary of {vocab_size} cannot hold all bytes", f"ask for {len(alphabet) + 1} or more"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        special_tokens=[END_OF_TEXT],
        show_progress=progress,
    )
    backend.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,
    )


def text_encoder(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """A copy of the tokenizer's Rust backend that encodes text and nothing but text.

    It neither cuts nor pads, and text that spells a special token is encoded as ordinary text. Encode with
    `add_special_tokens=False`.

    Raises:
        PerplabError: the tokenizer has no Rust backend.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise PerplabError(
            f"{type(tokenizer).__name__} has no Rust backend", "use a tokenizer that is saved with a tokenizer.json"
        )
    encoder = Tokenizer.from_str(backend.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hexadecimal digest of everything that decides how text becomes tokens."""
    return blake2b(text_encoder(tokenizer).to_str().encode("utf-8"), digest_size=16).hexdigest()


def boundary_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """Ids of the tokens that begin and end a document; a missing one is replaced by the other.

    Raises:
        PerplabError: the tokenizer has neither.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise PerplabError("the tokenizer has neither a bos nor an eos token", "set tokenizer.eos_token")
    return int(eos if bos is None else bos), int(bos if eos is None else eos)


def token_bytes(tokenizer: "PreTrainedTokenizerBase") -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each token stands for, shape (vocabulary,); 0 for special tokens and unused ids.

    Exact for byte-level BPE, where the ids of a document sum to its bytes, and for SentencePiece-style tokenizers,
    whose `▁` is one space (a tokenizer that puts a space of its own before the text counts that one too).

    Raises:
        PerplabError: the tokenizer is of another kind, whose tokens do not stand for definite bytes.
    """
    description = json.loads(text_encoder(tokenizer).to_str())
    parts = {part["type"] for part in _parts(description.get("pre_tokenizer")) + _parts(description.get("decoder"))}
    added = {token["id"]: token for token in description["added_tokens"]}
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(len(tokenizer), max(vocabulary.values()) + 1), dtype=np.int64)
    for token, index in vocabulary.items():
        if index in added:
            lengths[index] = 0 if added[index]["special"] else len(token.encode("utf-8"))
        elif "ByteLevel" in parts:
            lengths[index] = len(token)  # one character of the byte alphabet a byte
        elif parts & {"Metaspace", "ByteFallback"}:
            lengths[index] = 1 if _BYTE_FALLBACK.fullmatch(token) else len(token.replace("▁", " ").encode("utf-8"))
        else:
            raise PerplabError(
                "cannot tell how many bytes each token stands for: the tokenizer is neither byte-level nor "
                "SentencePiece-style",
                "score by token instead of by byte, or use another tokenizer",
            )
    return lengths


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer or decoder and, where it is a sequence, what it is made of."""
    if component is None:
        return []
    members = component.get("pretokenizers") or component.get("decoders") or []
    return [component, *(part for member in members for part in _parts(member))]
