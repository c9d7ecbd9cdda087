"""`perplab claims`, the page and the rows of the report."""

import json
from dataclasses import asdict

import pytest

from perplab.claims import page as page_module
from perplab.claims import rows_of, run_paper, summary, write_page
from perplab.claims.page import COLUMNS, page
from perplab.commands.claims import app
from perplab.errors import PerplabError


@pytest.fixture
def claims(cache, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        app([*words], exit_on_error=False, print_error=False, result_action="return_value")
        return capsys.readouterr().out

    return run


def test_measuring_listing_and_reporting(claims, tmp_path):
    told = json.loads(claims("run", "scaling_over_training", "--scale", "smoke", "--json"))
    row = next(row for row in told["claims"] if row["name"] == "RedPajama, 6.9B, M = 20: loss")
    assert row["ours"] == pytest.approx(0.7320, abs=1e-4)
    assert (row["paper_value"], row["verdict"], row["seeds"]) == (0.7320, "holds", 1)
    assert told["figures"]["RedPajama, 6.9B, M = 20: loss"] == [row["ours"]]

    table = claims("run", "scaling_over_training", "--scale", "smoke")
    for word in ("0.73205 %", "0.0464 %", "deterministic", "not measured", "--data-dir"):
        assert word in table

    listed = {paper["name"]: paper for paper in map(json.loads, claims("list", "--json").splitlines())}
    assert listed["scaling_over_training"]["scale"] == "smoke"
    assert "scaling_over_training" in claims("list")

    assert claims("report").strip() == f"docs/claims.md: {len(summary())} claims"
    written = (tmp_path / "docs" / "claims.md").read_text()
    assert "| 0.732 % | 0.73205 % | deterministic |" in written
    assert "not measured" not in written
    assert "Scale smoke, no randomness" in written
    assert "The code has changed since" not in written


def test_a_page_without_results_and_unknown_names_are_refused(claims):
    with pytest.raises(PerplabError, match="no claim was measured yet"):
        claims("report")
    with pytest.raises(PerplabError, match="'newton'"):
        claims("run", "newton")
    with pytest.raises(PerplabError, match="seeds is 0"):
        claims("run", "--seeds", "0")
    assert claims("list", "--json")


@pytest.fixture
def registered(made_up, monkeypatch):
    """`registered(...)` is a made-up paper that the registry knows alone."""

    def register(*arguments, **options):
        paper = made_up(*arguments, **options)
        monkeypatch.setattr("perplab.claims.rows.paper_names", lambda: ("made_up",))
        monkeypatch.setattr("perplab.claims.rows.find_paper", lambda name: paper)
        return paper

    return register


def test_the_summary_is_of_the_largest_scale_and_its_newest_code(registered):
    paper = registered()
    run_paper(paper, "smoke", 2)
    assert {row["scale"] for row in summary()} == {"smoke"}
    run_paper(paper, "pocket", 3)
    (row,) = summary()
    assert (row["scale"], row["seeds"], row["current"]) == ("pocket", 3, True)
    assert row["verdict"] == "holds"
    assert row["interval"][0] < row["ours"] < row["interval"][1] < 0
    registered("x = 1")
    (row,) = summary()
    assert (row["scale"], row["current"]) == ("pocket", False)
    assert "The code has changed since." in page(summary())


def test_a_page_has_one_row_a_claim_and_as_many_cells_as_columns(registered, tmp_path):
    run_paper(registered(), "smoke", 2)
    rows = summary()
    rows[0]["statement"] = "p(a|b) falls"
    lines = [line for line in page(rows).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert {line.replace(r"\|", "").count("|") for line in lines} == {len(COLUMNS) + 1}
    assert write_page(tmp_path / "page.md") == len(rows)
    assert (tmp_path / "page.md").read_text().startswith("# Claims\n")


def test_one_figure_that_no_seed_changes_does_not_make_the_others_exact(registered):
    paper = registered()
    rows = [asdict(row) for row in rows_of(paper, "smoke", run_paper(paper, "smoke", 2))]
    (row,) = [row for row in rows if row["verdict"] != "not measured"]
    assert "2 seeds" in page_module.circumstances([row, row | {"deterministic": True}])
    assert "no randomness" in page_module.circumstances([row | {"deterministic": True}])


def test_one_seed_is_called_one_seed(registered):
    paper = registered()
    rows = rows_of(paper, "smoke", run_paper(paper, "smoke", 1))
    assert rows[0].verdict == "holds in direction"
    assert page_module.cells(rows[0].__dict__)[COLUMNS.index("95 % interval")] == "one seed"
