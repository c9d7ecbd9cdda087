"""What a run on new text did to old text, read from its diary.

Decisions:
- Forgetting is a difference: everything stands against the evaluation before the first step, over the very same
  windows, with an interval by paired bootstrap over them. Windows that lie in one document resemble each other, and
  such an interval is on the narrow side.
- The stability gap is the part of the loss that goes away again by itself: how far the cost lies above both its start
  and its end, averaged over the run.
- One run is a point: what it forgot and what it learnt. A run is on the front if no other beats it in both.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perplab.artifacts import read_json
from perplab.errors import PerplabError
from perplab.scoring.bootstrap import PairedDifference, bootstrap_paired
from perplab.training.heldout import OVERALL, WindowCosts
from perplab.training.metrics import read_metrics

Side = Literal["new", "old"]


@dataclass(frozen=True)
class Reading:
    """What a text costs after some training.

    Attributes:
        step: steps taken.
        tokens: tokens trained on.
        loss: nats a token.
        bits_per_byte: the same a byte.
        change: nats a token above those before the first step.
        difference: that change with its interval; None before the first step, and where there is a single window.
    """

    step: int
    tokens: int
    loss: float
    bits_per_byte: float
    change: float
    difference: PairedDifference | None

    @property
    def perplexity(self) -> float:
        """Exponentiated cost of a token."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Course:
    """What a text costs over a run.

    Attributes:
        side: whether it is of the new text or the old.
        domain: of the text; `all` for all of the side.
        readings: from before the first step to after the last.
    """

    side: Side
    domain: str
    readings: tuple[Reading, ...]

    @property
    def first(self) -> Reading:
        """Before the first step."""
        return self.readings[0]

    @property
    def last(self) -> Reading:
        """After the last step."""
        return self.readings[-1]

    @property
    def worst(self) -> Reading:
        """Where the text costs most."""
        return max(self.readings, key=lambda reading: reading.change)

    @property
    def recovered_after(self) -> int | None:
        """Tokens after which a cost that rose is back where it began; 0 if it never rose, None if it never is."""
        if self.worst.change <= 0:
            return 0
        later = (reading for reading in self.readings if reading.step > self.worst.step and reading.change <= 0)
        return next((reading.tokens for reading in later), None)

    @property
    def stability_gap(self) -> float:
        """Nats a token above both start and end, averaged over the run by trapezia."""
        level = max(0.0, self.last.change)
        area = sum(
            (after.tokens - before.tokens) * (max(0.0, before.change - level) + max(0.0, after.change - level)) / 2
            for before, after in pairwise(self.readings)
        )
        return area / self.last.tokens if self.last.tokens else 0.0


@dataclass(frozen=True)
class ForgettingReport:
    """What a run did to new and old text.

    Attributes:
        run: its folder.
        courses: of the new text and of the old: all of it first, then its domains.
    """

    run: str
    courses: tuple[Course, ...]

    def course(self, side: Side, domain: str = OVERALL) -> Course:
        """The course of one text."""
        return next(course for course in self.courses if (course.side, course.domain) == (side, domain))


@dataclass(frozen=True)
class ParetoRow:
    """A run among others.

    Attributes:
        run: its folder.
        old: what all of the old text costs at its end.
        new: what all of the new text costs.
        beaten_by: a run that forgot no more and learnt no less, and is better in one of them; None on the front.
    """

    run: str
    old: Reading
    new: Reading
    beaten_by: str | None


def forgetting_report(run: str | os.PathLike[str], *, level: float = 0.95, seed: int = 0) -> ForgettingReport:
    """Read a run's diary.

    Args:
        run: folder of a run with old text, finished or under way.
        level: of the intervals.
        seed: of their resampling.

    Raises:
        PerplabError: the folder holds no such run, or its evaluations are not of the same windows.
    """
    folder = Path(run) / "run"
    records = [record for record in read_metrics(folder / "metrics.jsonl") if "windows" in record]
    if not records or records[0]["step"] != 0 or not records[0]["windows"]["old"]:
        raise PerplabError(
            f"{run} holds no run that measured old text",
            "train it with --from MODEL, and --old or --replay-from CORPUS",
        )
    batch_tokens = read_json(folder / "settings.json", "name the folder of a run")["batch_tokens"]
    courses: list[Course] = []
    for side in ("new", "old"):
        costs = [_by_domain(record["windows"][side]) for record in records]
        for domain in costs[0]:
            readings = _readings(records, [one[domain] for one in costs], batch_tokens, str(run), level, seed)
            courses.append(Course(side, domain, tuple(readings)))
    return ForgettingReport(str(run), tuple(courses))


def pareto(reports: Sequence[ForgettingReport]) -> list[ParetoRow]:
    """The runs in the order of what they forgot, the least first.

    Raises:
        PerplabError: the runs did not begin at the same cost, so that their ends do not compare.
    """
    ends = {report.run: (report.course("old").last, report.course("new").last) for report in reports}
    for report in reports[1:]:
        for side in ("old", "new"):
            first, other = reports[0].course(side).first.loss, report.course(side).first.loss
            if not math.isclose(first, other, rel_tol=1e-4):
                raise PerplabError(
                    f"{side} text costs {first:.4f} nats at the start of {reports[0].run} and {other:.4f} at that of "
                    f"{report.run}",
                    "compare runs from one model on the same texts",
                )
    rows = [
        ParetoRow(run, old, new, next((name for name, end in ends.items() if _beats(end, (old, new))), None))
        for run, (old, new) in ends.items()
    ]
    return sorted(rows, key=lambda row: row.old.change)


def _by_domain(windows: Mapping[str, Any]) -> dict[str, WindowCosts]:
    """Costs of all windows of a side, then of each domain."""
    domains = {
        name: WindowCosts(**{key: np.asarray(values) for key, values in costs.items()})
        for name, costs in windows.items()
    }
    return {OVERALL: WindowCosts(*(np.concatenate(parts) for parts in zip(*domains.values(), strict=True)))} | domains


def _readings(
    records: Sequence[Mapping[str, Any]],
    costs: Sequence[WindowCosts],
    batch_tokens: int,
    run: str,
    level: float,
    seed: int,
) -> Iterator[Reading]:
    start = costs[0]
    for record, now in zip(records, costs, strict=True):
        if not (np.array_equal(now.tokens, start.tokens) and np.array_equal(now.bytes, start.bytes)):
            raise PerplabError(
                f"{run} was not measured on the same windows at step {record['step']}",
                "do not change evaluate_tokens in the middle of a run",
            )
        tokens = start.tokens.sum()
        is_told = record["step"] > 0 and len(start.nats) > 1
        yield Reading(
            step=record["step"],
            tokens=record["step"] * batch_tokens,
            loss=float(now.nats.sum() / tokens),
            bits_per_byte=float(now.nats.sum() / start.bytes.sum() / math.log(2)),
            change=float((now.nats.sum() - start.nats.sum()) / tokens),
            difference=bootstrap_paired(start.nats, now.nats, start.tokens, level=level, seed=seed)
            if is_told
            else None,
        )


def _beats(one: tuple[Reading, Reading], other: tuple[Reading, Reading]) -> bool:
    """Whether one end is no dearer on either text, and cheaper on one."""
    losses = [(mine.loss, theirs.loss) for mine, theirs in zip(one, other, strict=True)]
    return all(mine <= theirs for mine, theirs in losses) and any(mine < theirs for mine, theirs in losses)
