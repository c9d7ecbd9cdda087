"""Every paper, measured at the scale of tests; and the figures of those that must come out."""

import pytest

from perplab.claims import find_paper, paper_names, rows_of
from perplab.claims.measuring import measure_seed
from perplab.errors import PerplabError

_CORRELATIONS = ("r: ", "r within size: ")
"""Figures that do not exist where a task does not vary over models, as after the little training of tests."""


@pytest.fixture(scope="module")
def measured():
    """`measured(name)` is a paper and its result at the smallest scale, measured once."""
    kept = {}

    def of(name):
        if name not in kept:
            kept[name] = measure_seed(find_paper(name), "smoke", 0, None)
        return find_paper(name), kept[name]

    return of


@pytest.mark.parametrize("name", paper_names())
def test_every_claim_is_about_a_figure_that_is_measured(name, measured):
    paper, result = measured(name)
    assert paper.name == name
    rows = rows_of(paper, "smoke", [result])
    assert [row.name for row in rows] == [claim.name for claim in paper.claims]
    if not paper.data:
        unmeasured = [c.metric for c, row in zip(paper.claims, rows, strict=True) if row.verdict == "not measured"]
        assert all(metric.startswith(_CORRELATIONS) for metric in unmeasured)
    assert any(row.verdict != "not measured" for row in rows)


def test_the_published_errors_of_over_training_come_out(measured):
    paper, result = measured("scaling_over_training")
    rows = {row.name: row for row in rows_of(paper, "smoke", [result])}
    published = {
        "RedPajama, 1.4B, M = 640: loss": 0.7103,
        "RedPajama, 6.9B, M = 20: loss": 0.7320,
        "RedPajama, 1.4B, M = 640: task error": 3.6365,
        "RedPajama, 6.9B, M = 20: task error": 0.0464,
        "RedPajama, 6.9B, M = 20: task error without the 1.4B run in its fit": 10.64,
    }
    for name, value in published.items():
        assert rows[name].ours == pytest.approx(value, abs=0.01)
        assert rows[name].verdict == "holds"
        assert rows[name].deterministic
        assert rows[name].interval is None
    assert {row.verdict for row in rows.values() if not row.name.startswith("testbed")} == {"holds"}
    assert {row.verdict for row in rows.values() if row.name.startswith("testbed")} == {"not measured"}


def test_at_20_tokens_per_parameter_both_laws_of_the_loss_are_one(measured):
    _, result = measured("scaling_over_training")
    at_20 = "RefinedWeb, 6.9B, M = 20: loss"
    power_law = result.figures[f"{at_20}, power law of one multiplier"]
    assert result.figures[at_20] == pytest.approx(power_law, rel=1e-6)
    assert result.figures[f"{at_20}, last value"] > 20


def test_an_unknown_paper_is_named_with_the_known():
    with pytest.raises(PerplabError, match=r"'newton'.*scaling_over_training"):
        find_paper("newton")
