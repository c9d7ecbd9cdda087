"""Plots of where two models differ, with their numbers; all are the second model's figure minus the first's."""

import math
from collections.abc import Sequence

import numpy as np

from perplab.report import plots as draw
from perplab.report.cost_figures import MOST_ROWS, QUANTILES
from perplab.report.parts import LABEL_LETTERS, Column, Figure, Table, number, percentage, shortened, with_interval
from perplab.scoring.bootstrap import Interval
from perplab.scoring.comparison import ScoreComparison


def difference_figures(comparison: ScoreComparison) -> list[Figure]:
    """Which documents, domains and kinds of token the second model gained or lost on."""
    return [_documents(comparison), _moved_by_domain(comparison), _moved_by_class(comparison)]


def _documents(comparison: ScoreComparison) -> Figure:
    heading = "Differences by document"
    sizes, nats, other_nats = (
        comparison.documents[column].to_numpy().astype(np.float64) for column in ("bytes", "first_nats", "second_nats")
    )
    bits = ((other_nats - nats)[sizes > 0]) / sizes[sizes > 0] / math.log(2)
    rows = [(f"{100 * share:g} %", number(float(np.quantile(bits, share)), 4, signed=True)) for share in QUANTILES]
    return Figure(
        heading,
        f"From the document where the second model gains most to the one where it loses most. It costs less in "
        f"{percentage(float((bits < 0).mean()))} of {len(bits):,}.",
        draw.sorted_values(heading, bits, "% of documents", "bits per byte, second minus first"),
        Table("Difference in bits per byte", [Column("documents below", numeric=False), Column("difference")], rows),
        named=False,
    )


def _moved_by_domain(comparison: ScoreComparison) -> Figure:
    largest = sorted(comparison.by_domain, key=lambda row: -row.tokens)[:MOST_ROWS]
    changes = [
        (row.name, row.second - row.first, row.difference.interval if row.difference else None) for row in largest
    ]
    note = "Second minus first, for the same text, with 95 % intervals where a domain has two documents or more."
    return _moved("Differences by domain", note, "nats per token", changes)


def _moved_by_class(comparison: ScoreComparison) -> Figure:
    bits = comparison.first.nats / comparison.first.bits_per_byte  # nats of a bit times bytes
    changes = [(row.name, row.change / bits, None) for row in comparison.by_token_class]
    note = "What each kind of token adds to the difference in bits per byte; together they are the whole of it."
    return _moved("Which tokens the difference comes from", note, "bits per byte", changes)


def _moved(heading: str, note: str, unit: str, changes: Sequence[tuple[str, float, Interval | None]]) -> Figure:
    groups = [draw.BarGroup(name, [draw.Bar(value, interval)]) for name, value, interval in changes]
    rows = [
        (shortened(name, LABEL_LETTERS), with_interval(value, interval, 4, signed=True))
        for name, value, interval in changes
    ]
    return Figure(
        heading,
        note,
        draw.differences(heading, groups, unit),
        Table(heading, [Column("", numeric=False), Column(unit)], rows),
        named=False,
    )
