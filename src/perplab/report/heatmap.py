"""The text as a heat map: markup with a colour a token, and the data that the page shows about the token under the eye.

- Where two models cut the text differently, the cost of the one is laid over the tokens of the other as it is for every
  comparison (`perplab.scoring.alignment`).
- Costs, entropies and log-probabilities are whole hundredths of a nat in the data: a third of the bytes, and as exact
  as the page prints them.
- Documents are taken in their order until the page's budget of bytes is spent.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from perplab.report.characters import running
from perplab.report.colours import cost_class, difference_class
from perplab.report.subject import Excerpt, Subject
from perplab.scoring.alignment import align

Costs = npt.NDArray[np.float64]

_NEVER = 1e4
"""Nats of what cannot happen, where a model gives a probability of zero."""


@dataclass(frozen=True, eq=False)
class ShownDocument:
    """One document on the page.

    Attributes:
        row: of the scores' documents.
        panes: the coloured text as each model cut it.
        others: for each pane what its tokens cost the other model, (tokens,) nats; empty where there is no other.
        data: what the script reads about each pane's tokens.
    """

    row: int
    panes: Sequence[Markup]
    others: Sequence[Costs]
    data: Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """The documents on the page, and the JSON its script reads."""

    documents: Sequence[ShownDocument]
    data: Markup


def heat_map(subjects: Sequence[Subject], budget: int) -> HeatMap:
    """As many of the subjects' excerpts, in their order, as `budget` bytes of markup and data hold."""
    documents: list[ShownDocument] = []
    indices: list[dict[int, int]] = [{} for _ in subjects]  # of each alternative in the model's list of spellings
    for excerpts in zip(*(subject.excerpts for subject in subjects), strict=True):
        grown = [_with_alternatives(index, excerpt) for index, excerpt in zip(indices, excerpts, strict=True)]
        document = _document(subjects, excerpts, grown)
        spelling = [list(_spellings(*parts)) for parts in zip(subjects, grown, strict=True)]
        new = [words[len(index) :] for words, index in zip(spelling, indices, strict=True)]
        budget -= len(json.dumps([document.data, new])) + sum(len(pane.encode("utf-8")) for pane in document.panes)
        if budget < 0:
            break
        documents.append(document)
        indices = grown
    value = {
        "models": [subject.name for subject in subjects],
        "spelling": [list(_spellings(*parts)) for parts in zip(subjects, indices, strict=True)],
        "documents": [document.data for document in documents],
    }
    return HeatMap(documents, _inert(json.dumps(value, separators=(",", ":"), allow_nan=False)))


def _inert(text: str) -> Markup:
    """JSON that cannot end the script element it stands in."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _with_alternatives(index: dict[int, int], excerpt: Excerpt) -> dict[int, int]:
    new = [token for token in np.unique(excerpt.alternatives.token_ids).tolist() if token not in index]
    return index | {token: len(index) + at for at, token in enumerate(new)}


def _spellings(subject: Subject, index: dict[int, int]) -> Iterator[str]:
    return (subject.spelling[token] for token in index)


def _document(
    subjects: Sequence[Subject], excerpts: Sequence[Excerpt], indices: Sequence[dict[int, int]]
) -> ShownDocument:
    others = _costs_of_others(subjects, excerpts)
    paired: list[Costs | None] = [*others] or [None]
    panes = [_pane(excerpts[0], None)]
    if others:
        panes.append(_pane(excerpts[1], others[1]))  # the difference is shown over the second model's tokens
    return ShownDocument(
        row=excerpts[0].document,
        panes=panes,
        others=others,
        data=[_pane_data(*parts) for parts in zip(excerpts, indices, paired, strict=True)],
    )


def _costs_of_others(subjects: Sequence[Subject], excerpts: Sequence[Excerpt]) -> list[Costs]:
    if len(subjects) == 1:
        return []
    first, second = (subject.scores_of(excerpt.document) for subject, excerpt in zip(subjects, excerpts, strict=True))
    laid_over = align(first, second).second, align(second, first).second
    return [costs[: len(excerpt.texts)] for costs, excerpt in zip(laid_over, excerpts, strict=True)]


def _pane(excerpt: Excerpt, other: Costs | None) -> Markup:
    classes = [f"c{number}" for number in cost_class(excerpt.nll)]
    if other is not None:
        differences = difference_class(excerpt.nll - other)
        classes = [f"{cost}{_difference_name(int(number))}" for cost, number in zip(classes, differences, strict=True)]
    return Markup("".join(map(_token, excerpt.texts, classes)))


def _difference_name(number: int) -> str:
    if number == 0:
        return ""
    return f" p{number}" if number > 0 else f" m{-number}"


def _token(text: str, classes: str) -> str:
    if not text:
        classes += " fragment"
    elif not text.strip(" "):
        classes += " blank"
    return f'<i class="{classes}">{running(text)}</i>'


def _pane_data(excerpt: Excerpt, index: dict[int, int], other: Costs | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "nll": _hundredths(excerpt.nll),
        "rank": excerpt.rank.tolist(),
        "entropy": _hundredths(excerpt.entropy),
        "count": excerpt.alternatives.token_ids.shape[1],
        "alternatives": [index[token] for token in excerpt.alternatives.token_ids.ravel().tolist()],
        "log_probs": _hundredths(excerpt.alternatives.log_probs.ravel()),
    }
    if other is not None:
        found |= {"sizes": excerpt.sizes.tolist(), "other": _hundredths(other)}
    return found


def _hundredths(values: npt.NDArray[np.floating]) -> list[int]:
    whole: list[int] = np.rint(np.clip(values.astype(np.float64), -_NEVER, _NEVER) * 100).astype(np.int64).tolist()
    return whole
