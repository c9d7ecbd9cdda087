"""`perplab train --from`: what it prints, the page it writes, and one line for what is wrong."""

import json
from itertools import chain
from pathlib import Path

import pytest
from cyclopts import App

from perplab.commands.train import train
from perplab.errors import PerplabError

SIZES = {"--tokens": 1024, "--block-size": 64, "--batch-tokens": 256, "--micro-batch-tokens": 256}
SMALL = ("--no-compile", "--no-progress", "--precision", "float32", "--evaluate-tokens", 512, *chain(*SIZES.items()))


@pytest.fixture
def command(capsys):
    """`command(*words)` runs the command and returns what it printed."""
    app = App(name="train")
    app.default(train)

    def run(*words):
        app(
            [str(word) for word in (*words, *SMALL)],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def parent(command, corpus_file, tmp_path):
    command("--out", tmp_path / "parent", "--corpus", corpus_file, "--depth", 1, "--vocab-size", 300)
    return tmp_path / "parent"


@pytest.fixture
def new_file(tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"text": f"{place} red and green " * 9}) + "\n" for place in range(120)))
    return path


def test_a_model_is_trained_further_and_told_what_it_forgot(command, parent, new_file, corpus_file, tmp_path):
    adapted = ("--from", parent, "--corpus", new_file, "--replay-from", corpus_file)
    first = command("--out", tmp_path / "a", *adapted, "--replay", 0.25, "--rewarm", 1)
    assert [line.split(":")[0].strip() for line in first[1:]] == [
        *(f"held-out bits per byte, {name}" for name in ("new", "all")),
        *(f"old text's bits per byte, {name}" for name in ("prose", "numbers", "all")),
        "new text since the start",
        "old text since the start",
    ]
    assert float(first[-2].split()[5]) < 0
    page = tmp_path / "page.html"
    told = command("--out", tmp_path / "b", *adapted, "--rewarm", 2, "--html", page, "--beside", tmp_path / "a")
    assert told[-1] == str(page)
    shown = page.read_text()
    assert "Forgetting in several runs" in shown
    assert shown.count('<svg class="plot"') == 3
    assert all(str(tmp_path / name) in shown for name in "ab")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--html", "page.html"), "the page is about old text, and there is none"),
        (("--old", "OLD", "--beside", "a"), "set beside this one on a page, and there is none"),
        (("--from", "PARENT", "--tokenizer", "pocket"), "a tokenizer is given, but .* has its own"),
        (("--from", "PARENT", "--qk-norm"), "qk_norm is given, but the shape is that of"),
        (("--rewarm", "1"), "no parent to re-warm"),
        (("--from", "PARENT", "--replay", "0.1"), "no old text: name it with --replay-from"),
        (("--from", "PARENT", "--warmup", "0.5", "--horizon-tokens", "100000"), "is longer than the run of 4"),
    ],
)
def test_what_cannot_be_meant_is_one_line(command, parent, new_file, corpus_file, tmp_path, words, complaint):
    given = {"PARENT": parent, "OLD": corpus_file}
    with pytest.raises(PerplabError, match=complaint) as caught:
        command("--out", tmp_path / "out", "--corpus", new_file, *(given.get(word, word) for word in words))
    assert "\n" not in str(caught.value)
    assert not Path("page.html").exists()
