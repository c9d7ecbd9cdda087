"""From documents to the sequences of tokens that a procedure cuts into windows.

- Two things are decided here: which texts follow one another in a sequence, and which tokens that are not text stand
  before a text.
- Peers that add the tokenizer's own special tokens also read a special token where a text spells one; the others read
  such a spelling as the text it is.
- A document that joins or is cropped loses nothing else: its tokens keep their places in the text they came from.
"""

import re
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.scoring.byte_spans import Bytes, byte_spans, definite_token_bytes
from perplab.scoring.requests import Request, TokenIds
from perplab.text import Document, boundary_tokens, text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Concatenation = Literal["each document alone", "packed rows", "joined by blank lines", "joined without a gap"]
"""Which texts follow one another.

- `each document alone`.
- `packed rows`: rows as long as a window, each filled with the longest waiting document that still fits; where none
  fits, the shortest is cropped and what is cropped is lost. The last row holds what is left.
- `joined by blank lines`: one text.
- `joined without a gap`: one text, without its last line end.
"""

FirstToken = Literal["bos", "bos, then special tokens", "special tokens", "bos over each window's first", "nothing"]
"""What stands before a text.

- `bos`: the token that begins documents (eos where there is no bos), as context only.
- `bos, then special tokens`: the same, and after it whatever the tokenizer adds of its own, which is scored.
- `special tokens`: whatever the tokenizer adds. With nothing before it, the first token of a sequence is not scored.
- `bos over each window's first`: where the tokenizer begins texts with bos, it replaces the first token of each window.
- `nothing`: a first token is scored all the same, by a model that needs no token before it.
"""

NOTHING_BEFORE = -1
"""What stands in a request's context where nothing comes before a text."""

JOINED = "joined"

_PACKING_BUFFER = 1000
_PACKING_BATCH = 128


@dataclass(slots=True)
class PlannedDocument:
    """A text as tokens, and the requests that score them.

    Attributes:
        name: of the document; `joined` where documents were joined.
        domain: of the document; `joined` likewise.
        num_bytes: UTF-8 bytes of the text.
        num_words: words of the text, counted as white space plus one.
        opening: ids before the text that are never scored, (0 or 1,).
        token_ids: (tokens,), special tokens that the tokenizer added among them.
        starts: first byte of each token in the text's UTF-8, (tokens,).
        ends: the byte after its last, (tokens,).
        added: which tokens the tokenizer added, (tokens,).
        requests: what to ask the engine, in order.
        first_positions: for each request, the place in `token_ids` of the first token it scores.
    """

    name: str
    domain: str
    num_bytes: int
    num_words: int
    opening: TokenIds
    token_ids: TokenIds
    starts: Bytes
    ends: Bytes
    added: npt.NDArray[np.bool_]
    requests: list[Request] = field(default_factory=list)
    first_positions: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens that the document takes up in a sequence."""
        return len(self.opening) + len(self.token_ids)

    def cropped(self, length: int) -> "PlannedDocument":
        """The first tokens of the document, so many that it takes up `length`."""
        kept = slice(max(0, length - len(self.opening)))
        parts = {name: getattr(self, name)[kept] for name in ("token_ids", "starts", "ends", "added")}
        return replace(self, opening=self.opening[:length], requests=[], first_positions=[], **parts)


class DocumentEncoder:
    """Turns documents into tokens, with the tokens before them that a procedure wants.

    Args:
        tokenizer: of the model.
        first_token: what stands before a text.

    Attributes:
        window_bos: the id that replaces each window's first; None where nothing is replaced.

    Raises:
        PerplabError: the tokenizer has no Rust backend, or no token to begin documents with where one is needed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", first_token: FirstToken) -> None:
        self._encoder = text_encoder(tokenizer)
        self._lengths = definite_token_bytes(tokenizer)
        self._adds_special = first_token in ("special tokens", "bos, then special tokens")
        self._encoder.encode_special_tokens = not self._adds_special
        self._spelled_opening = ""
        self.window_bos: int | None = None
        opening = [NOTHING_BEFORE] if first_token == "nothing" else []
        if first_token in ("bos", "bos, then special tokens"):
            opening = [boundary_tokens(tokenizer)[0]]
        elif first_token == "bos over each window's first" and self._begins_with_bos(tokenizer):
            opening = [int(tokenizer.bos_token_id)]
            self.window_bos = opening[0]
        if first_token == "bos, then special tokens":
            self._spelled_opening = tokenizer.decode(opening)
        self._opening = np.array(opening, dtype=np.int32)

    def encode(self, document: Document) -> PlannedDocument:
        """The document as tokens, not yet with requests."""
        text = document.text
        # lm-eval leaves the tokenizer's own bos out where the text already spells one.
        spelled = bool(self._spelled_opening) and text.startswith(self._spelled_opening)
        encoding = self._encoder.encode(text, add_special_tokens=self._adds_special and not spelled)
        starts, ends = byte_spans(text, encoding, self._lengths)
        return PlannedDocument(
            name=document.name,
            domain=document.domain,
            num_bytes=len(text.encode("utf-8")),
            num_words=1 + sum(1 for _ in re.finditer(r"\s+", text)),
            opening=self._opening,
            token_ids=np.array(encoding.ids, dtype=np.int32),
            starts=starts,
            ends=ends,
            added=np.array(encoding.special_tokens_mask, dtype=bool),
        )

    def _begins_with_bos(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        own = self._encoder.encode("", add_special_tokens=True).ids
        return tokenizer.bos_token_id is not None and own[:1] == [tokenizer.bos_token_id]


def streams(
    documents: Iterable[Document], encoder: DocumentEncoder, concatenation: Concatenation, span: int
) -> Iterator[list[PlannedDocument]]:
    """Sequences, each as the documents that follow one another in it.

    Args:
        documents: the text.
        encoder: makes tokens of it.
        concatenation: which documents follow one another.
        span: tokens of a packed row.

    Raises:
        PerplabError: a text has no UTF-8.
    """
    texts = map(_refuse_surrogates, documents)
    if concatenation == "each document alone":
        yield from ([encoder.encode(document)] for document in texts)
    elif concatenation == "packed rows":
        yield from _packed(map(encoder.encode, texts), span)
    elif concatenation == "joined by blank lines":
        yield [encoder.encode(_joined(texts, "\n\n"))]
    else:
        whole = _joined(texts, "")
        yield [encoder.encode(replace(whole, text=whole.text.removesuffix("\n")))]


def _refuse_surrogates(document: Document) -> Document:
    try:
        document.text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PerplabError(
            f"{document.name} has a lone surrogate at character {error.start}, which UTF-8 cannot hold",
            "decode the text with errors='strict' and correct its source",
        ) from None
    return document


def _joined(documents: Iterable[Document], separator: str) -> Document:
    return Document(separator.join(document.text for document in documents), JOINED, JOINED)


def _packed(documents: Iterator[PlannedDocument], capacity: int) -> Iterator[list[PlannedDocument]]:
    """Rows of documents; of documents equally long the one that came first is taken first."""
    waiting: list[tuple[int, int, PlannedDocument]] = []  # by length, then from the last that came to the first
    arrivals = iter(enumerate(documents))
    row: list[PlannedDocument] = []
    room = capacity
    while True:
        while len(waiting) < _PACKING_BUFFER and (batch := list(islice(arrivals, _PACKING_BATCH))):
            for number, document in batch:
                insort(waiting, (len(document), -number, document))
        if not waiting:
            break
        fitting = max(room, waiting[0][0])  # where none fits, the shortest
        chosen = bisect_right(waiting, (fitting, inf)) - 1
        document = waiting.pop(chosen)[2].cropped(room)
        row.append(document)
        room -= len(document)
        if room == 0:
            yield row
            row, room = [], capacity
    if row:
        yield row
