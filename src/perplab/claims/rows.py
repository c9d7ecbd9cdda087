"""Claims, measured, as rows of plain values for the command line, the page and the HTML report."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perplab.claims.claim import Claim, Effect, Paper, Scale
from perplab.claims.registry import find_paper, paper_names
from perplab.claims.results import Result, code_key, latest_results
from perplab.claims.verdict import Verdict, judge


@dataclass(frozen=True, kw_only=True)
class Row:
    """A claim beside what came out.

    Attributes:
        paper: its name.
        title: the paper's title.
        reference: where to find it.
        note: what a reader has to know about how the paper is measured.
        name: the claim's name.
        statement: what the paper says.
        effect: what is compared: `value`, `difference` or `ratio`.
        unit: of the metric.
        paper_value: the paper's figure for the effect, if it states one.
        metric: mean of the figure over seeds; None where it was not measured, like the next three.
        baseline: mean of the baseline's figure; None where there is none.
        ours: mean of the effect.
        interval: of the effect; None where it has none.
        verdict: `holds`, `holds in direction`, `does not show at this scale` or `not measured`.
        deterministic: whether the figures depend on no seed.
        scale: `smoke`, `pocket` or `gpu`.
        seeds: how many.
        machine: what it ran on.
        date: of the last result, in ISO 8601.
        current: whether the code is still the one that was measured.
    """

    paper: str
    title: str
    reference: str
    note: str
    name: str
    statement: str
    effect: Effect
    unit: str
    paper_value: float | None
    metric: float | None
    baseline: float | None
    ours: float | None
    interval: tuple[float, float] | None
    verdict: str
    deterministic: bool
    scale: Scale
    seeds: int
    machine: str
    date: str
    current: bool


def summary() -> list[dict[str, Any]]:
    """Every claim that was measured, as `Row`'s fields: of each paper at the largest scale it was measured at."""
    rows = (row for name in paper_names() for row in _latest_rows(find_paper(name)))
    return [asdict(row) for row in rows if row.verdict != "not measured"]


def rows_of(paper: Paper, scale: Scale, results: Sequence[Result]) -> list[Row]:
    """One row a claim of a paper, judged by these results."""
    figures = [result.figures for result in results]
    return [_row(paper, claim, judge(claim, figures, seeded=paper.seeded), scale, results) for claim in paper.claims]


def _latest_rows(paper: Paper) -> Iterable[Row]:
    latest = latest_results(paper)
    return rows_of(paper, *latest) if latest else ()


def _row(paper: Paper, claim: Claim, verdict: Verdict, scale: Scale, results: Sequence[Result]) -> Row:
    return Row(
        paper=paper.name,
        title=paper.title,
        reference=paper.reference,
        note=paper.note,
        name=claim.name,
        statement=claim.statement,
        effect=claim.effect,
        unit=claim.unit,
        paper_value=claim.paper_value,
        metric=verdict.metric,
        baseline=verdict.baseline,
        ours=verdict.effect,
        interval=verdict.interval,
        verdict=verdict.words,
        deterministic=verdict.deterministic,
        scale=scale,
        seeds=len(results),
        machine=" and ".join(dict.fromkeys(result.machine for result in results)),
        date=max(result.created for result in results),
        current=all(result.code == code_key(paper) for result in results),
    )
