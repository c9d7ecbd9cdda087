"""Plots of where the cost sits, with their numbers: one series for each model."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from perplab.report import plots as draw
from perplab.report.parts import LABEL_LETTERS, Column, Figure, Table, number, percentage, shortened, with_interval
from perplab.report.subject import Subject
from perplab.scoring import TokenScores
from perplab.scoring.bootstrap import Interval, resampled_ratios
from perplab.scoring.tables import (
    Grouping,
    LossRow,
    by_domain,
    by_position,
    by_token_class,
    group_sums,
    loss_table,
)

BIN = 0.5
"""Nats in a bin of the histogram."""
BINS = 24
RANKS = (1, 2, 3, 6, 11, 101, 1001)
"""First ranks of the groups in a plot."""
ENTROPIES = 8
"""Groups of tokens by the whole nats of entropy; the last has no upper end."""
MOST_ROWS = 20
"""Domains in a plot: those with most bytes."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

Floats = npt.NDArray[np.float64]


def cost_figures(subjects: Sequence[Subject], *, seed: int = 0) -> list[Figure]:
    """Figures of one model, or of two beside each other.

    Args:
        subjects: one, or two on the same documents.
        seed: of the bootstrap.
    """
    return [
        _costs(subjects),
        _positions(subjects, seed),
        _domains(subjects, seed),
        _token_classes(subjects),
        _ranks(subjects),
        _expected(subjects),
    ]


def _costs(subjects: Sequence[Subject]) -> Figure:
    heading = "What tokens cost"
    series, columns = [], []
    for subject in subjects:
        nll = subject.scores.nll
        bins = np.minimum(nll / BIN, BINS - 1).astype(np.int64)
        series.append(draw.Series(100 * np.bincount(bins, minlength=BINS) / len(nll)))
        columns.append([*np.quantile(nll, QUANTILES), nll.mean(dtype=np.float64), nll.max()])
    names = [*(f"{100 * quantile:g} % cost less than" for quantile in QUANTILES), "mean", "dearest"]
    rows = [(name, *(number(float(column[at]), 2) for column in columns)) for at, name in enumerate(names)]
    return Figure(
        heading,
        f"Share of the tokens at each cost. The last bin holds all from {BIN * (BINS - 1):g} nats.",
        draw.histogram(heading, series, BIN, "nats", "% of tokens"),
        Table("Cost of a token in nats", [Column("tokens", numeric=False), *_columns(subjects, "nats")], rows),
    )


def _positions(subjects: Sequence[Subject], seed: int) -> Figure:
    heading = "Cost by place in the document"
    tables = [loss_table(subject.scores, by_position(subject.scores), seed=seed) for subject in subjects]
    names = list(dict.fromkeys(row.name for table in tables for row in table))
    starts = [_abbreviated(int(name.partition("-")[0])) for name in names]
    rows = _by_name(names, tables, lambda row: [with_interval(row.nats_per_token, row.interval, 2)])
    return Figure(
        heading,
        "Mean cost of a token, by how many tokens of the document stand before it.",
        draw.steps(heading, [_series(table) for table in tables], starts, "tokens before it, from", "nats per token"),
        Table("Nats per token", [Column("tokens before it", numeric=False), *_columns(subjects, "nats")], rows),
    )


def _series(table: Sequence[LossRow]) -> draw.Series:
    low, high = (
        np.array([getattr(row.interval, end) if row.interval else np.nan for row in table]) for end in ("low", "high")
    )
    return draw.Series(np.array([row.nats_per_token for row in table]), (low, high))


def _domains(subjects: Sequence[Subject], seed: int) -> Figure:
    heading = "Bits per byte by domain"
    grouping = by_domain(subjects[0].scores)
    sizes = _bytes(subjects[0].scores, grouping).sum(axis=0)
    shown = np.argsort(-sizes, kind="stable")[:MOST_ROWS]
    found = [_bits_per_byte(subject.scores, seed) for subject in subjects]
    groups = [draw.BarGroup(grouping.names[at], [draw.Bar(*estimates[at]) for estimates in found]) for at in shown]
    rows = [
        (
            shortened(grouping.names[at], LABEL_LETTERS),
            f"{int(sizes[at]):,}",
            *(with_interval(value, interval, 3) for value, interval in (estimates[at] for estimates in found)),
        )
        for at in shown
    ]
    columns = [Column("domain", numeric=False), Column("bytes"), *_columns(subjects, "bits per byte")]
    largest = f" The {MOST_ROWS} largest of {len(sizes)} domains." if len(sizes) > MOST_ROWS else ""
    return Figure(
        heading,
        "With 95 % intervals where a domain has two documents or more." + largest,
        draw.bars(heading, groups, "bits per byte"),
        Table(heading, columns, rows),
    )


def _token_classes(subjects: Sequence[Subject]) -> Figure:
    heading = "Which tokens the cost goes to"
    tables = [
        loss_table(subject.scores, by_token_class(subject.scores, subject.classifier), resamples=100)
        for subject in subjects
    ]
    names = list(dict.fromkeys(row.name for table in tables for row in table))
    of_name = [{row.name: row for row in table} for table in tables]
    groups = [draw.BarGroup(name, [_share_bar(rows.get(name)) for rows in of_name]) for name in names]
    columns = [Column("kind of token", numeric=False)]
    columns += [Column(f"{kind}{_of(subject, subjects)}") for subject in subjects for kind in ("tokens", "cost")]
    rows = _by_name(names, tables, lambda row: [percentage(row.token_share), percentage(row.loss_share)])
    return Figure(
        heading,
        "Bars: share of the whole cost. Ticks: share of the tokens. A bar past its tick is dearer than average.",
        draw.bars(heading, groups, "% of the cost"),
        Table("Shares by kind of token", columns, rows),
    )


def _share_bar(row: LossRow | None) -> draw.Bar:
    """Empty where a model has no such tokens."""
    return draw.Bar(100 * row.loss_share, mark=100 * row.token_share) if row else draw.Bar(0.0)


def _ranks(subjects: Sequence[Subject]) -> Figure:
    heading = "How far down the right token stood"
    names = [f"{low}" if high == low + 1 else f"{low} to {high - 1:,}" for low, high in pairwise(RANKS)]
    names.append(f"{RANKS[-1]:,} and more")
    shares = []
    for subject in subjects:
        bins = np.searchsorted(RANKS, subject.scores.tokens["rank"].to_numpy(), side="right") - 1
        shares.append(np.bincount(bins, minlength=len(RANKS)) / len(bins))
    groups = [draw.BarGroup(name, [draw.Bar(100 * share[at]) for share in shares]) for at, name in enumerate(names)]
    rows = [(name, *(percentage(float(share[at])) for share in shares)) for at, name in enumerate(names)]
    return Figure(
        heading,
        "Share of the tokens at each rank among the whole vocabulary, where 1 is the model's first guess.",
        draw.bars(heading, groups, "% of tokens"),
        Table("Share of tokens by rank", [Column("rank", numeric=False), *_columns(subjects, "tokens")], rows),
    )


def _expected(subjects: Sequence[Subject]) -> Figure:
    heading = "Expected and actual cost"
    means = [_means_by_entropy(subject.scores) for subject in subjects]
    names = [*map(str, range(ENTROPIES - 1)), f"{ENTROPIES - 1}+"]
    rows = [
        (name, *("" if np.isnan(mean[at]) else number(float(mean[at]), 2) for pair in means for mean in pair))
        for at, name in enumerate(names)
    ]
    columns = [Column("entropy, from", numeric=False)]
    columns += [Column(f"{kind}{_of(subject, subjects)}") for subject in subjects for kind in ("expected", "actual")]
    return Figure(
        heading,
        "Mean cost of the tokens whose distribution had each entropy. The thin line is the entropy itself, the cost "
        "that a model expects.",
        draw.steps(
            heading,
            [draw.Series(actual) for _, actual in means],
            names,
            "entropy in nats, from",
            "nats per token",
            reference=means[0][0],
        ),
        Table("Nats per token by entropy", columns, rows),
    )


def _means_by_entropy(scores: TokenScores) -> tuple[Floats, Floats]:
    """Mean entropy and mean cost of the tokens in each nat of entropy; NaN where there are none."""
    entropy = scores.tokens["entropy"].to_numpy().astype(np.float64)
    bins = np.clip(entropy, 0, ENTROPIES - 1).astype(np.int64)
    count = np.bincount(bins, minlength=ENTROPIES).astype(np.float64)
    count[count == 0] = np.nan
    expected, actual = (np.bincount(bins, values, ENTROPIES) / count for values in (entropy, scores.nll))
    return expected, actual


def _bits_per_byte(scores: TokenScores, seed: int) -> list[tuple[float, Interval | None]]:
    """Of each domain, with an interval where it has two documents or more."""
    grouping = by_domain(scores)
    nats, bits = group_sums(scores, grouping, scores.nll), _bytes(scores, grouping) * math.log(2)
    values = (nats.sum(axis=0) / np.maximum(bits.sum(axis=0), 1)).tolist()
    ratios = resampled_ratios(nats, bits, seed=seed)
    return [(value, ratio.interval() if ratio else None) for value, ratio in zip(values, ratios, strict=True)]


def _bytes(scores: TokenScores, grouping: Grouping) -> Floats:
    """Bytes of the tokens of each group in each document, (documents, groups)."""
    return group_sums(scores, grouping, scores.tokens["end"].to_numpy() - scores.tokens["start"].to_numpy())


def _by_name(
    names: Sequence[str], tables: Sequence[Sequence[LossRow]], cells_of: Callable[[LossRow], list[str]]
) -> list[tuple[str, ...]]:
    """Rows of a table: for each name the cells of each model; empty ones where a model has no such tokens."""
    width = len(cells_of(tables[0][0]))
    found = [{row.name: cells_of(row) for row in table} for table in tables]
    return [(name, *(cell for cells in found for cell in cells.get(name, [""] * width))) for name in names]


def _columns(subjects: Sequence[Subject], unit: str) -> Iterator[Column]:
    yield from (Column(shortened(subject.name, LABEL_LETTERS) if len(subjects) > 1 else unit) for subject in subjects)


def _of(subject: Subject, subjects: Sequence[Subject]) -> str:
    return f", {shortened(subject.name, LABEL_LETTERS)}" if len(subjects) > 1 else ""


def _abbreviated(count: int) -> str:
    """A count of tokens in few letters: 4, 256, 16k."""
    return f"{count}" if count < 1000 else f"{count // 1000}k"
