"""The places of a text where a second model lost most, to read.

A document is cut into passages of about 200 bytes, at the first token that begins in each stretch of so many bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perplab.scoring.alignment import AlignedScores
from perplab.text import Document

PASSAGE_BYTES = 200


@dataclass(frozen=True)
class Passage:
    """A place in a text.

    Args:
        document: its name.
        domain: of the document.
        start: first byte of the passage in the document's UTF-8.
        end: the byte after its last.
        first: nats that the passage costs the first model.
        second: nats that it costs the second.
        text: what stands there; empty until `with_text` finds it.
    """

    document: str
    domain: str
    start: int
    end: int
    first: float
    second: float
    text: str = ""

    @property
    def change(self) -> float:
        """Nats that the second model pays more."""
        return self.second - self.first


def worst_passages(aligned: AlignedScores, count: int) -> list[Passage]:
    """The passages with the largest increase, the largest first; fewer than `count` where few increase."""
    tokens, documents = aligned.scores.tokens, aligned.scores.documents
    owner, start, end = (tokens[column].to_numpy() for column in ("document", "start", "end"))
    begins = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(start // PASSAGE_BYTES, prepend=-1) != 0))
    first, second = (np.add.reduceat(nats, begins) for nats in (aligned.first, aligned.second))
    change = second - first
    worst = np.argsort(-change, kind="stable")[:count]
    last = np.append(begins[1:], len(owner)) - 1
    return [
        Passage(
            document=documents["name"][int(owner[begins[index]])].as_py(),
            domain=documents["domain"][int(owner[begins[index]])].as_py(),
            start=int(start[begins[index]]),
            end=int(end[last[index]]),
            first=float(first[index]),
            second=float(second[index]),
        )
        for index in worst
        if change[index] > 0
    ]


def with_text(passages: Sequence[Passage], documents: Iterable[Document]) -> list[Passage]:
    """The passages with what stands there, read from the documents they are of.

    A character that a passage holds only part of is left out.
    """
    wanted = {passage.document for passage in passages}
    contents = {document.name: document.text.encode("utf-8") for document in documents if document.name in wanted}
    return [
        replace(passage, text=contents[passage.document][passage.start : passage.end].decode("utf-8", errors="ignore"))
        for passage in passages
    ]
