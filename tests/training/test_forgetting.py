import json
import math

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.report.forgetting_section import forgetting_section
from perplab.scoring.bootstrap import bootstrap_paired
from perplab.training.forgetting import forgetting_report, pareto

WINDOWS = 12
TOKENS = np.arange(50.0, 50 + WINDOWS)
BYTES = 3 * TOKENS


@pytest.fixture
def diary(tmp_path):
    """`diary(old, new, name)` writes the diary of a run whose texts cost so many nats a token at steps 0, 1, 2, ..."""

    def written(old, new, name="run", noise=0.1):
        draw = np.random.default_rng(0)
        lines = []
        for step, losses in enumerate(zip(old, new, strict=True)):
            windows = {
                side: {"prose": window_costs(loss + noise * draw.standard_normal(WINDOWS))}
                for side, loss in zip(("old", "new"), losses, strict=True)
            }
            lines += [{"step": step, "loss": 1.0}, {"step": step, "windows": windows}]
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "settings.json").write_text(json.dumps({"batch_tokens": 100}))
        return folder.parent

    return written


def window_costs(losses):
    return {"nats": (losses * TOKENS).tolist(), "tokens": TOKENS.tolist(), "bytes": BYTES.tolist()}


def test_changes_are_paired_by_window_against_the_beginning(diary):
    folder = diary([2.0, 2.5, 2.3], [3.0, 2.0, 1.5])
    report = forgetting_report(folder)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    start, end = (np.array(lines[place]["windows"]["old"]["prose"]["nats"]) for place in (1, 5))
    course = report.course("old")
    assert course.last.loss == pytest.approx(end.sum() / TOKENS.sum())
    assert course.last.difference == bootstrap_paired(start, end, TOKENS)
    assert course.last.change == pytest.approx(course.last.difference.value)
    assert course.last.bits_per_byte == pytest.approx(course.last.loss / 3 / math.log(2))
    assert course.last.perplexity == pytest.approx(math.exp(course.last.loss))
    assert (course.first.change, course.first.difference, course.last.tokens) == (0.0, None, 200)
    assert report.course("old", "prose").last == course.last  # one domain is all of the text


def test_all_of_a_side_is_its_domains_together(diary):
    folder = diary([2.0, 2.5], [3.0, 2.0])
    path = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for windows in line.get("windows", {}).values():
            windows["code"] = window_costs(np.full(WINDOWS, 1.0 + line["step"]))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = forgetting_report(folder)
    parts = [report.course("old", name).last.loss for name in ("prose", "code")]
    assert report.course("old").last.loss == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize(
    ("old", "recovered", "gap"),
    [
        ([2.0, 2.6, 2.2, 2.0], 300, (50 * 0.6 + 100 * 0.4 + 50 * 0.2) / 300),
        ([2.0, 2.6, 1.8, 1.9], 200, (50 * 0.6 + 50 * 0.6) / 300),
        ([2.0, 2.6, 2.2, 2.2], None, (50 * 0.4 + 50 * 0.4) / 300),
        ([2.0, 2.1, 2.2, 2.3], None, 0.0),
        ([2.0, 1.9, 1.8, 1.7], 0, 0.0),
    ],
)
def test_recovery_and_stability_gap_are_those_of_the_curve(diary, old, recovered, gap):
    course = forgetting_report(diary(old, [3.0, 2.0, 2.0, 2.0], noise=0.0)).course("old")
    assert course.recovered_after == recovered
    assert course.stability_gap == pytest.approx(gap)
    assert course.worst.change == pytest.approx(max(0.0, max(old) - 2.0))


def test_a_run_is_beaten_by_one_that_forgot_less_and_learnt_more(diary):
    ends = {"gentle": (2.1, 1.9), "eager": (2.4, 1.5), "clumsy": (2.5, 1.6)}
    reports = [forgetting_report(diary([2.0, old], [3.0, new], name, 0.0)) for name, (old, new) in ends.items()]
    rows = pareto(reports)
    gentle, eager, clumsy = (report.run for report in reports)
    assert [(row.run, row.beaten_by) for row in rows] == [(gentle, None), (eager, None), (clumsy, eager)]


def test_a_run_is_not_beaten_by_its_equal(diary):
    reports = [forgetting_report(diary([2.0, 2.2], [3.0, 2.0], name)) for name in ("one", "two")]
    assert [row.beaten_by for row in pareto(reports)] == [None, None]


def test_runs_from_other_models_do_not_compare(diary):
    reports = [forgetting_report(diary([start, 2.2], [3.0, 2.0], f"{start}")) for start in (2.0, 2.1)]
    with pytest.raises(PerplabError, match=r"old text costs .* compare runs from one model"):
        pareto(reports)


def test_an_evaluation_of_other_windows_is_refused(diary):
    folder = diary([2.0, 2.5], [3.0, 2.0])
    path = folder / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for values in lines[-1]["windows"]["old"]["prose"].values():
        values.pop()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PerplabError, match="not measured on the same windows at step 1"):
        forgetting_report(folder)


def test_a_run_without_old_text_is_refused(tmp_path):
    with pytest.raises(PerplabError, match="holds no run that measured old text"):
        forgetting_report(tmp_path)


def test_section_of_one_run_shows_both_texts_and_every_domain(diary):
    section = forgetting_section([forgetting_report(diary([2.0, 2.5, 2.3], [3.0, 2.0, 1.5]))])
    (figure,) = section.figures
    assert figure.plot.count('<path class="line') == 2
    assert len(figure.table.rows) == 6
    assert [row[0] for row in section.tables[0].rows] == [
        f"{side}, {domain}" for side in ("new text", "old text") for domain in ("all", "prose")
    ]


def test_section_of_several_runs_ranks_them(diary):
    reports = [
        forgetting_report(diary([2.0, old], [3.0, new], f"{place}", 0.0))
        for place, (old, new) in enumerate([(2.5, 1.6), (2.1, 1.9), (2.4, 1.5)])
    ]
    section = forgetting_section(reports)
    assert len(section.figures) == 3
    assert [row[0][-1] for row in section.tables[0].rows] == ["1", "2", "0"]
    assert [row[3][-1] for row in section.tables[0].rows] == ["e", "e", "2"]  # none, none, beaten by the third
    with pytest.raises(PerplabError, match="a page of 9 runs"):
        forgetting_section(reports * 3)
