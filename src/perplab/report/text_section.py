"""The section that shows text token by token, and the tables beside it that need no pointer and no colour."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from perplab.report.characters import cell
from perplab.report.heatmap import ShownDocument
from perplab.report.parts import LABEL_LETTERS, Column, Table, number, percentage, shortened
from perplab.report.subject import Excerpt, Subject

ROWS = 10
"""Tokens in a table of the dearest."""
NAME_LETTERS = 80
"""Longest name of a document or domain that is printed in full."""
_TABLE_LETTERS = 32
"""Longest context and name in the tables of the dearest."""
_NAMED_LEFT_OUT = 100


@dataclass(frozen=True)
class DocumentView:
    """A document on the page.

    Attributes:
        name: of the document.
        domain: of the document.
        facts: what is said under its name.
        bits: bits per byte of the whole document for each model.
        panes: its text as each model cut it.
    """

    name: str
    domain: str
    facts: Sequence[str]
    bits: Sequence[str]
    panes: Sequence[Markup]


@dataclass(frozen=True)
class LeftOut:
    """What is not shown."""

    summary: str
    names: str


def document_views(subjects: Sequence[Subject], documents: Sequence[ShownDocument]) -> list[DocumentView]:
    """The shown documents with their figures."""
    return [_view(subjects, document, place) for place, document in enumerate(documents)]


def note(subjects: Sequence[Subject], documents: Sequence[ShownDocument]) -> str:
    """What is shown, and what the reader has to know to read it."""
    listed = subjects[0].scores.documents
    turns = ", domains taking turns" if len(set(listed["domain"].to_pylist())) > 1 else ""
    return (
        f"Shown are {len(documents):,} of {listed.num_rows:,} documents, long ones in part, in the order of the corpus"
        f"{turns}. Each token stands on the colour of its cost. All figures above are over everything."
    )


def left_out(subjects: Sequence[Subject], documents: Sequence[ShownDocument]) -> LeftOut | None:
    """The documents that are not shown; None where all are."""
    shown = {document.row for document in documents}
    names = subjects[0].scores.documents["name"].to_pylist()
    missing = [shortened(name, NAME_LETTERS) for row, name in enumerate(names) if row not in shown]
    if not missing:
        return None
    more = f", and {len(missing) - _NAMED_LEFT_OUT:,} more" if len(missing) > _NAMED_LEFT_OUT else ""
    return LeftOut(f"Not shown: {len(missing):,} documents", ", ".join(missing[:_NAMED_LEFT_OUT]) + more)


def dearest_tables(subjects: Sequence[Subject], documents: Sequence[ShownDocument]) -> list[Table]:
    """Of one model the dearest tokens; of two, the tokens on which the second costs most and least beside the first."""
    if len(subjects) == 1:
        return [_dearest(subjects[0], len(documents))]
    return [_moved(subjects, documents, sign) for sign in (1, -1)]


def _view(subjects: Sequence[Subject], document: ShownDocument, place: int) -> DocumentView:
    row = document.row
    about = {key: subjects[0].scores.documents[key][row].as_py() for key in ("name", "domain", "bytes")}
    excerpts = [subject.excerpts[place] for subject in subjects]
    bits = [f"{number(subject.scores_of(row).bits_per_byte, 3)} bits per byte" for subject in subjects]
    tokens = " / ".join(map(_token_count, excerpts))
    facts = [f"{about['bytes']:,} bytes", f"{tokens} tokens", *(bits if len(subjects) == 1 else ())]
    name, domain = (shortened(about[key], NAME_LETTERS) for key in ("name", "domain"))
    return DocumentView(name, domain, facts, bits, document.panes)


def _token_count(excerpt: Excerpt) -> str:
    shown, total = len(excerpt.texts), excerpt.num_tokens
    return f"{shown:,} of {total:,}" if shown < total else f"{total:,}"


def _dearest(subject: Subject, num_documents: int) -> Table:
    excerpts = subject.excerpts[:num_documents]
    columns = [Column("Token", False), Column("After", False), Column("Nats"), Column("Rank")]
    columns += [Column("First guess", False), Column("Its probability"), Column("Document", False)]
    rows = [
        (
            cell(excerpts[place].texts[index]),
            cell(_before(excerpts[place], index)),
            number(float(excerpts[place].nll[index]), 2),
            f"{excerpts[place].rank[index]:,}",
            cell(subject.spelling[int(excerpts[place].alternatives.token_ids[index, 0])]),
            percentage(float(np.exp(excerpts[place].alternatives.log_probs[index, 0]))),
            _document_name(subject, excerpts[place]),
        )
        for place, index in _greatest([excerpt.nll for excerpt in excerpts])
    ]
    return Table("Dearest tokens of the shown text", columns, rows)


def _moved(subjects: Sequence[Subject], documents: Sequence[ShownDocument], sign: int) -> Table:
    first, second = subjects
    excerpts = second.excerpts[: len(documents)]
    others = [document.others[1] for document in documents]
    differences = [excerpt.nll - other for excerpt, other in zip(excerpts, others, strict=True)]
    columns = [Column("Token", False), Column("After", False)]
    columns += [Column(f"Nats, {shortened(subject.name, LABEL_LETTERS)}") for subject in subjects]
    columns += [Column("Difference"), Column("Document", False)]
    rows = [
        (
            cell(excerpts[place].texts[index]),
            cell(_before(excerpts[place], index)),
            number(float(others[place][index]), 2),
            number(float(excerpts[place].nll[index]), 2),
            number(float(differences[place][index]), 2, signed=True),
            _document_name(second, excerpts[place]),
        )
        for place, index in _greatest([sign * difference for difference in differences])
    ]
    kind = "dearer" if sign > 0 else "cheaper"
    return Table(f"Tokens that are {kind} to {second.name} than to {first.name}", columns, rows)


def _greatest(values: Sequence[npt.NDArray[np.floating]]) -> Iterator[tuple[int, int]]:
    """Array and index of the greatest values above 0, greatest first."""
    joined = np.concatenate(values)
    begins = np.cumsum([0, *map(len, values)])
    for at in np.argsort(-joined, kind="stable")[:ROWS]:
        if joined[at] > 0:
            array = int(np.searchsorted(begins, at, side="right")) - 1
            yield array, int(at - begins[array])


def _before(excerpt: Excerpt, index: int) -> str:
    return "".join(excerpt.texts[max(0, index - _TABLE_LETTERS) : index])[-_TABLE_LETTERS:]


def _document_name(subject: Subject, excerpt: Excerpt) -> str:
    return shortened(subject.scores.documents["name"][excerpt.document].as_py(), _TABLE_LETTERS)
