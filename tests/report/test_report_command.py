"""`perplab report` with the model that is shipped."""

import json

import pytest

from perplab.cli import main


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to work in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def status_of(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    return ended.value.code


def test_a_text_becomes_a_page_whose_path_is_all_that_is_printed(home, capsys):
    text = "def add(x, y):\n    return '</script>'"
    assert status_of("pocket", "--text", text, "--out", "deep/page.html") == 0
    assert capsys.readouterr().out == "deep/page.html\n"
    page = (home / "deep" / "page.html").read_text(encoding="utf-8")
    assert "<title>pocket</title>" in page
    assert "return '</script>'" not in page


def test_two_models_on_a_corpus_stand_side_by_side_and_settings_reach_the_page(home, capsys):
    records = [{"text": f"Line {number} of a text.\n", "domain": f"part {number % 2}"} for number in range(6)]
    (home / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    arguments = ["--corpus", "lines.jsonl", "--split", "all", "--title", "A & B", "--shown-documents", "3"]
    assert status_of("pocket", "pocket", *arguments) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (home / "report.html").read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in page
    assert "Shown are 3 of 6 documents" in page
    assert "This text does not tell pocket and pocket apart" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to report"),
        (["--claims"], "no claim was measured yet"),
        (["pocket", "--text", ""], "no token to score"),
        (["pocket", "--text", "a", "--alternatives", "0"], "alternatives is 0"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_no_file(home, capsys, arguments, words):
    assert status_of(*arguments) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert not (home / "report.html").exists()
