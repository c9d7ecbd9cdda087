"""What kind of text each token is: a word's beginning, a digit, a line end.

Decisions:
- What a token's text says is found once for the vocabulary; a million tokens are then three look-ups in a table.
- A token is of the first class that fits: `other` (special, unfinished UTF-8, nothing printable), `line end` (holds
  one), `whitespace`, then by its first letter or digit, past blanks and signs: `digit`, or a word; `punctuation` where
  it has neither.
- A word is continued where a token begins with a letter and the token before it ends in a letter, digit or mark. The
  text of a token alone cannot tell: `name` begins a word at the start of a line and ends one in `file` + `name`.
"""

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perplab.text import text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_CLASSES = ("word start", "word continuation", "digit", "punctuation", "whitespace", "line end", "other")
_WORD_START, _CONTINUATION, _DIGIT, _PUNCTUATION, _WHITESPACE, _LINE_END, _OTHER = range(len(TOKEN_CLASSES))


@dataclass(frozen=True, eq=False)
class TokenClassifier:
    """The classes of a vocabulary.

    Attributes:
        alone: (vocabulary,) int8, index into `TOKEN_CLASSES` of each token where no word stands before it.
        begins_in_word: (vocabulary,) whether it can continue a word.
        ends_in_word: (vocabulary,) whether a word can go on after it.
    """

    alone: npt.NDArray[np.int8]
    begins_in_word: npt.NDArray[np.bool_]
    ends_in_word: npt.NDArray[np.bool_]

    def classes(self, token_ids: npt.NDArray[np.integer], documents: npt.NDArray[np.integer]) -> npt.NDArray[np.int8]:
        """Class of each token of some documents.

        Args:
            token_ids: (tokens,) in the order of the text.
            documents: (tokens,) which document each is in.

        Returns:
            (tokens,) indices into `TOKEN_CLASSES`.
        """
        found: npt.NDArray[np.int8] = self.alone[token_ids]
        follows_word = self.ends_in_word[token_ids[:-1]] & (documents[:-1] == documents[1:])
        found[1:][follows_word & self.begins_in_word[token_ids[1:]]] = _CONTINUATION
        return found


def token_classifier(tokenizer: "PreTrainedTokenizerBase") -> TokenClassifier:
    """The classes of a tokenizer's vocabulary.

    Raises:
        PerplabError: the tokenizer has no Rust backend.
    """
    backend = text_encoder(tokenizer)
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    alone = np.full(size, _OTHER, dtype=np.int8)
    begins, ends = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    special = set(tokenizer.all_special_ids)
    for token, index in vocabulary.items():
        # Decoders strip a blank before the first token of a text, so each is decoded behind another.
        text = backend.decoder.decode(["a", token])[1:] if backend.decoder else token
        if index not in special and text:
            alone[index] = _class_of(text)
            begins[index] = alone[index] == _WORD_START and _is_of_word(text[0])
            ends[index] = _is_of_word(text[-1])
    return TokenClassifier(alone, begins, ends)


def _class_of(text: str) -> int:
    if "\ufffd" in text:
        return _OTHER
    if "\n" in text or "\r" in text:
        return _LINE_END
    if text.isspace():
        return _WHITESPACE
    first = next((character for character in text if _is_of_word(character)), None)
    if first is None:
        return _PUNCTUATION if any(unicodedata.category(character)[0] in "PS" for character in text) else _OTHER
    return _DIGIT if unicodedata.category(first)[0] == "N" else _WORD_START


def _is_of_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
