"""A language as text: a character for each symbol, a line for each sentence.

- The first 94 symbols are the printable characters of ASCII, a byte each, and the rest ideographs: none of them is a
  space or a line break, and no two are the same after Unicode normalisation.
- A line break ends each sentence, and stands for the end symbol of languages that have one. A sentence, its line break
  included, costs length times `entropy("causal")` for a reader who knows where a sentence begins: where all are equally
  long the line break costs nothing.
"""

from collections.abc import Iterator

import numpy as np

from perplab.errors import PerplabError
from perplab.text.corpus import Corpus
from perplab.text.documents import Document
from perplab.text.synthetic.languages.language import Language

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_IDEOGRAPHS = "".join(map(chr, range(0x4E00, 0x9FA6)))
_FORMAT_VERSION = 1


def language_characters(vocab_size: int) -> str:
    """The character of each symbol.

    Raises:
        PerplabError: there are more symbols than characters.
    """
    characters = _ASCII + _IDEOGRAPHS
    if vocab_size > len(characters):
        raise PerplabError(f"a vocabulary of {vocab_size} as text", f"use {len(characters)} symbols or fewer")
    return characters[:vocab_size]


def language_corpus(language: Language, sentences: int, seed: int, *, per_document: int = 64) -> Corpus:
    """Sentences of a language as a corpus.

    Args:
        language: to draw from.
        sentences: how many, in all documents together.
        seed: of the sentences.
        per_document: sentences of a document; the last document may have fewer.

    Raises:
        PerplabError: there is no sentence, or the vocabulary is too large.
    """
    if sentences < 1 or per_document < 1:
        raise PerplabError(f"{sentences} sentences, {per_document} a document", "ask for one or more")
    language_characters(language.vocab_size)
    return Corpus(f"language {seed}", "all", _LanguageSource(language, sentences, seed, per_document))


class _LanguageSource:
    """The documents, drawn anew at each reading; each from its own seed."""

    def __init__(self, language: Language, sentences: int, seed: int, per_document: int) -> None:
        self._language = language
        self._sentences = sentences
        self._seed = seed
        self._per_document = per_document

    def identity(self) -> str:
        """Version of the format, language, seed and numbers."""
        numbers = f"{self._seed} {self._sentences} {self._per_document}"
        return f"language {_FORMAT_VERSION} {self._language.identity()} {numbers}"

    def approximate_bytes(self) -> int:
        """A byte a character, all sentences of full length."""
        return self._sentences * (self._language.length + 1)

    def documents(self) -> Iterator[Document]:
        """All documents."""
        characters = np.array(list(language_characters(self._language.vocab_size)))
        for number, start in enumerate(range(0, self._sentences, self._per_document)):
            random = np.random.default_rng([self._seed, number])
            ids = self._language.draw(min(self._per_document, self._sentences - start), random)
            text = "".join("".join(characters[line[line != self._language.end]]) + "\n" for line in ids)
            yield Document(text, "language", f"sentences {start}")
