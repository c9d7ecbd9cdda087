"""Pictures of laws; drawn where matplotlib is installed."""

import sys

import pytest

from perplab.errors import PerplabError
from perplab.laws import DownstreamErrorLaw, OverTrainingLaw, plot_law

LAW = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136)


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_decides_the_format(suffix, magic, published, tmp_path):
    pytest.importorskip("matplotlib")
    plot_law(LAW, published("RedPajama").loss_law, tmp_path / f"law.{suffix}")
    assert (tmp_path / f"law.{suffix}").read_bytes().startswith(magic)


def test_an_error_law_is_drawn_over_the_loss(published, tmp_path):
    pytest.importorskip("matplotlib")
    runs = published("RedPajama").error_law
    plot_law(DownstreamErrorLaw.fit(runs.loss, runs.error), runs, tmp_path / "law.svg")
    assert "<!-- mean error over tasks -->" in (tmp_path / "law.svg").read_text()


def test_a_run_under_the_irreducible_loss_cannot_be_drawn(published, tmp_path):
    pytest.importorskip("matplotlib")
    high = OverTrainingLaw(irreducible=4.0, a=212.0, b=367.0, eta=0.136)
    with pytest.raises(PerplabError, match="not above the irreducible loss"):
        plot_law(high, published("RedPajama").loss_law, tmp_path / "law.svg")
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_and_a_missing_matplotlib_are_named(published, tmp_path, monkeypatch):
    runs = published("RedPajama").loss_law
    with pytest.raises(PerplabError, match=r"law\.txt has no suffix of a picture"):
        plot_law(LAW, runs, tmp_path / "law.txt")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PerplabError, match=r"pip install 'perplab\[plot\]'"):
        plot_law(LAW, runs, tmp_path / "law.svg")
