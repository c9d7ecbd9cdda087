"""The section of runs on new text: what they cost old text.

Decisions:
- The curve is the change since before the first step, over tokens on an axis of powers, because most of the story lies
  at the beginning.
- Several runs are curves of one colour scheme and points in a plane of old against new; the line is the front.
"""

from collections.abc import Sequence

import numpy as np

from perplab.errors import PerplabError
from perplab.report import plots as draw
from perplab.report.axes import MARKS
from perplab.report.curves import Curve, curves
from perplab.report.parts import Column, Figure, Section, Table, number, shortened, with_interval
from perplab.training.forgetting import Course, ForgettingReport, ParetoRow, Reading, Side, pareto

_TOKENS = "tokens trained on"
_CHANGE = "change, nats a token"
_SIDES: dict[Side, str] = {"old": "old text", "new": "new text"}


def forgetting_section(reports: Sequence[ForgettingReport]) -> Section:
    """Curves and tables of one run, or of several from one model.

    Args:
        reports: at least one, at most as many as there are shapes of points.

    Raises:
        PerplabError: there are too many runs, or they do not compare.
    """
    if len(reports) > len(MARKS):
        raise PerplabError(f"a page of {len(reports)} runs", f"give at most {len(MARKS)}")
    tables = [_domains(report, len(reports) > 1) for report in reports]
    note = (
        "Old text is what the model was trained on before, new text what it is trained on now. Changes are against the "
        "model before the first step, over the same windows; brackets are 95 % intervals by paired bootstrap. "
    )
    if len(reports) == 1:
        shown = [(_SIDES[side], reports[0].course(side)) for side in _SIDES]
        return Section(
            "forgetting", f"Forgetting in {reports[0].run}", "Forgetting", note, [_course_figure(None, shown)], tables
        )
    rows = pareto(reports)
    return Section(
        "forgetting",
        "Forgetting in several runs",
        "Forgetting",
        note + "Nothing beats the runs on the dotted line.",
        [
            _front_figure(rows),
            *(_course_figure(_SIDES[side], [(one.run, one.course(side)) for one in reports]) for side in _SIDES),
        ],
        [_front_table(rows), *tables],
    )


def _course_figure(text: str | None, shown: Sequence[tuple[str, Course]]) -> Figure:
    heading = f"Change of the {text}" if text else "Change of old and new text"
    plot = curves(heading, [_curve(name, course) for name, course in shown], _TOKENS, _CHANGE)
    rows = [
        (name, f"{reading.tokens:,}", number(reading.loss, 3), _change(reading))
        for name, course in shown
        for reading in course.readings
    ]
    columns = [Column("", numeric=False), Column(_TOKENS), Column("nats a token"), Column("change")]
    return Figure(heading, "Above 0 is forgotten, below is learnt.", plot, Table(heading, columns, rows), named=False)


def _curve(name: str, course: Course) -> Curve:
    later = course.readings[1:] or course.readings
    ends = [
        (reading.difference.interval.low, reading.difference.interval.high)
        if reading.difference
        else (reading.change, reading.change)
        for reading in later
    ]
    low, high = np.array(ends).T
    return Curve(
        name, np.array([float(one.tokens) for one in later]), np.array([one.change for one in later]), (low, high)
    )


def _front_figure(rows: Sequence[ParetoRow]) -> Figure:
    heading = "What was forgotten against what was learnt"
    points = [
        draw.Point(
            x=row.old.loss,
            y=row.new.loss,
            label=shortened(row.run, 12),
            title=f"{row.run}: {number(row.old.loss, 3)} and {number(row.new.loss, 3)}",
            mark=place,
        )
        for place, row in enumerate(rows)
    ]
    front = [(row.old.loss, row.new.loss) for row in rows if row.beaten_by is None]
    labels = "old text, nats a token", "new text, nats a token"
    return Figure(
        heading,
        "Left and low is better.",
        draw.scatter(heading, points, *labels, front),
        Table(
            heading,
            [Column("run", numeric=False), *map(Column, labels)],
            [(row.run, number(row.old.loss, 3), number(row.new.loss, 3)) for row in rows],
        ),
        named=False,
    )


def _front_table(rows: Sequence[ParetoRow]) -> Table:
    return Table(
        "Runs, from the least forgotten",
        [Column("run", numeric=False), Column("old text"), Column("new text"), Column("beaten by", numeric=False)],
        [(row.run, _change(row.old), _change(row.new), row.beaten_by or "none") for row in rows],
    )


def _domains(report: ForgettingReport, named: bool) -> Table:
    names = ("nats at the start", "at the end", "change", "perplexity", "worst change", "recovered after", "gap")
    return Table(
        f"By domain{f', {report.run}' if named else ''}: tokens until recovered, and mean stability gap in nats",
        [Column("text", numeric=False), *map(Column, names)],
        [
            (
                f"{_SIDES[course.side]}, {course.domain}",
                number(course.first.loss, 3),
                number(course.last.loss, 3),
                _change(course.last),
                number(course.last.perplexity, 2),
                number(course.worst.change, 3, signed=True),
                "never" if course.recovered_after is None else f"{course.recovered_after:,}",
                number(course.stability_gap, 4),
            )
            for course in report.courses
        ],
    )


def _change(reading: Reading) -> str:
    interval = reading.difference.interval if reading.difference else None
    return with_interval(reading.change, interval, 3, signed=True)
