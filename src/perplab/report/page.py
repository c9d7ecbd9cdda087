"""The page: what was measured, put into the template.

- One file. Style, script and data stand in it; a content policy that knows their hashes forbids everything else, so a
  page from an untrusted model or corpus can neither run code nor call out.
- The template escapes every string that it is given; only markup made in this room passes as it is.
- Nothing in it depends on the time or the machine: the same input gives the same bytes.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from perplab import __version__
from perplab.artifacts import atomic_file
from perplab.errors import PerplabError
from perplab.report import text_section
from perplab.report.claims_section import claims_section
from perplab.report.colours import COST_STEP, COST_STEPS, DIFFERENCE_STEPS, palette_css
from perplab.report.config import ReportConfig
from perplab.report.cost_figures import cost_figures
from perplab.report.difference_figures import difference_figures
from perplab.report.heatmap import HeatMap, heat_map
from perplab.report.method import method, subtitle
from perplab.report.parts import LABEL_LETTERS, Figure, Section, shortened
from perplab.report.subject import Subject
from perplab.report.summary import summary
from perplab.scoring.comparison import ScoreComparison, compare_scores

MAX_BYTES = 3_000_000
"""Largest page."""
TEXT_BYTES = 2_300_000
"""Of those, the text shown token by token, with its data."""

_HEADINGS = {"summary": "Summary", "plots": "Where the cost sits", "text": "The text"}


def report(
    subjects: Sequence[Subject],
    claims: Sequence[Mapping[str, Any]] = (),
    config: ReportConfig | None = None,
    *,
    studies: Sequence[Section] = (),
) -> str:
    """One page about one model, or two on the same documents, or what other verbs found, or claims, or all of it.

    Args:
        subjects: at most two, from `study`.
        claims: rows of `perplab.claims.summary`.
        config: the page's title and the seed of its intervals.
        studies: what other verbs found.

    Returns:
        The page, whose UTF-8 has fewer than `MAX_BYTES` bytes.

    Raises:
        PerplabError: there is nothing to show, there are three models or more, two were not scored on the same
            documents, a claim lacks a key, or claims make the page too large.
    """
    settings = config or ReportConfig()
    _check(subjects, claims, studies)
    comparison = _comparison(subjects, settings.seed)
    shown = heat_map(subjects, TEXT_BYTES) if subjects else None
    parts = {
        "summary": summary(subjects, comparison, seed=settings.seed) if subjects else None,
        "plots": _figures(subjects, comparison, settings.seed) if subjects else [],
        "text": shown,
    }
    told = claims_section(claims)
    sections = [
        *((name, _HEADINGS[name]) for name, content in parts.items() if content),
        *((study.name, study.heading) for study in studies),
        *([("claims", "Claims")] if told else []),
    ]
    page = _template().render(
        title=settings.title or _title(subjects, studies),
        models=[subject.name for subject in subjects],
        sections=sections,
        parts=parts,
        studies=studies,
        claims=told,
        text=_text(subjects, shown) if shown else None,
        subtitle=subtitle(subjects),
        method=list(method(subjects, settings.seed)) if subjects else [],
        version=__version__,
        policy=_policy(),
        style=Markup(_style()),
        script=Markup(_resource("script.js")),
    )
    whole = page.encode("utf-8", "replace")  # names of files may hold bytes that are no UTF-8
    if len(whole) >= MAX_BYTES:
        raise PerplabError(f"the page would have {len(whole):,} bytes", f"give fewer claims; {MAX_BYTES:,} is the most")
    return whole.decode("utf-8")


def write(page: str, path: str | os.PathLike[str]) -> None:
    """Write a page to `path`.

    Raises:
        PerplabError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="")


def _title(subjects: Sequence[Subject], studies: Sequence[Section]) -> str:
    names = [subject.name for subject in subjects] or [study.title for study in studies]
    return " and ".join(names) or "Claims"


def _check(subjects: Sequence[Subject], claims: Sequence[Mapping[str, Any]], studies: Sequence[Section]) -> None:
    if not (subjects or claims or studies):
        raise PerplabError("there is nothing to report", "give a model, what a verb found, or claims")
    if len(subjects) > 2:
        raise PerplabError(f"a report of {len(subjects)} models", "give one or two")
    if len(subjects) == 2:
        first, second = (
            (subject.scores.documents.to_pylist(), [excerpt.document for excerpt in subject.excerpts])
            for subject in subjects
        )
        if first != second:
            raise PerplabError(
                f"{subjects[0].name} and {subjects[1].name} were not studied on the same documents",
                "study both on one corpus with one config",
            )


def _comparison(subjects: Sequence[Subject], seed: int) -> ScoreComparison | None:
    """Of two models; None where there is one, or one document, which tells no interval."""
    if len(subjects) < 2 or subjects[0].scores.documents.num_rows < 2:
        return None
    first, second = subjects
    return compare_scores(first.scores, second.scores, classifier=first.classifier, passages=0, seed=seed)


def _figures(subjects: Sequence[Subject], comparison: ScoreComparison | None, seed: int) -> list[Figure]:
    return cost_figures(subjects, seed=seed) + (difference_figures(comparison) if comparison else [])


def _text(subjects: Sequence[Subject], shown: HeatMap) -> dict[str, Any]:
    if not shown.documents:
        raise PerplabError("the beginning of the first document alone does not fit the page", "lower shown_bytes")
    names = [shortened(subject.name, LABEL_LETTERS) for subject in subjects]
    sides = range(1, DIFFERENCE_STEPS + 1)
    return {
        "note": text_section.note(subjects, shown.documents),
        "views": [("both", "Both"), *zip(("first", "second"), names, strict=True), ("difference", "Difference")]
        if len(subjects) == 2
        else [("first", names[0])],
        "cost_steps": [f"c{number}" for number in range(COST_STEPS)],
        "cost_ticks": [*range(0, int((COST_STEPS - 1) * COST_STEP), 2), f"{(COST_STEPS - 1) * COST_STEP:g} and more"],
        "difference_steps": [*(f"m{number}" for number in reversed(sides)), "c0", *(f"p{number}" for number in sides)],
        "difference_end": f"{DIFFERENCE_STEPS * COST_STEP:g}",
        "documents": text_section.document_views(subjects, shown.documents),
        "tables": text_section.dearest_tables(subjects, shown.documents),
        "left_out": text_section.left_out(subjects, shown.documents),
        "data": shown.data,
    }


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("template.html"))


@cache
def _style() -> str:
    return f"{_resource('style.css')}\n{palette_css()}\n"


def _policy() -> str:
    allowed = {"style-src": _style(), "script-src": _resource("script.js")}
    sources = "; ".join(f"{kind} 'sha256-{_digest(content)}'" for kind, content in allowed.items())
    return f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; {sources}"


def _digest(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


@cache
def _resource(name: str) -> str:
    return files("perplab.report").joinpath(name).read_text(encoding="utf-8")
