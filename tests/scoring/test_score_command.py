"""The command `score` on a corpus, called as the command line calls it."""

import json

import pytest

from perplab.commands.score import score
from perplab.errors import PerplabError
from perplab.models import load
from perplab.scoring import TokenScores
from perplab.scoring.conventions import CONVENTIONS
from perplab.scoring.perplexity import perplexity
from perplab.text import open_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five documents of two kinds, one longer than a window of the shipped model."""
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    long_ones = ("def f(x):\n    return x + 1\n" * 60, "The end of it.\n" * 40)
    texts = [long_ones[0], "a short note", "import os\n", long_ones[1], "x = [1, 2]\n"]
    lines = [{"text": text, "domain": ("code", "prose")[index % 2]} for index, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def printed(capsys, *arguments, **options):
    score(*arguments, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_json_is_the_library_s_perplexity(corpus, capsys, convention):
    window = 128 if convention in ("llamacpp", "gptq") else None
    found = json.loads(printed(capsys, corpus=corpus, convention=convention, window=window, as_json=True))
    if window is None:
        expected = perplexity(load("pocket"), open_corpus(corpus), convention=convention)
        assert found["value"] == pytest.approx(expected.value, rel=1e-6)
        assert found["interval"]["low"] == pytest.approx(expected.interval.low, rel=1e-6)
    assert found["convention"] == convention
    assert found["unit"] == CONVENTIONS[convention].unit
    assert sum(part["nats"] for name, part in found["domains"].items() if name != "all") == pytest.approx(found["nats"])


@pytest.mark.parametrize("by", ["position", "token-class"])
def test_tables_by_place_and_class_add_up(corpus, capsys, by):
    found = json.loads(printed(capsys, corpus=corpus, by=by, as_json=True))
    assert sum(row["tokens"] for row in found["rows"]) == found["num_tokens"]
    assert sum(row["loss_share"] for row in found["rows"]) == pytest.approx(1)
    assert "of the loss" in printed(capsys, corpus=corpus, by=by)


def test_scores_are_kept_with_the_columns_asked_for(corpus, capsys, tmp_path):
    out = str(tmp_path / "scores")
    shown = printed(capsys, corpus=corpus, out=out, metrics=("rank", "entropy"))
    kept = TokenScores.read(out)
    assert {"rank", "entropy"} <= set(kept.tokens.column_names)
    assert f"{len(kept.nll):,}" in shown
    assert printed(capsys, corpus=corpus, out=out, metrics=("rank", "entropy")) == shown


def test_windows_that_cannot_be_are_refused(corpus):
    with pytest.raises(PerplabError, match="a window of 4096 tokens is longer than the model's 512 positions"):
        score(corpus=corpus, window=4096)
    with pytest.raises(PerplabError, match="a stride of 600 is larger than the window"):
        score(corpus=corpus, stride=600)
    with pytest.raises(PerplabError, match="unknown convention 'wiki'"):
        score(corpus=corpus, convention="wiki")
