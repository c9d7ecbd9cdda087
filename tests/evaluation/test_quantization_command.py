"""`perplab evaluate --suite quantization`."""

import json

import pytest

from perplab.cli import main


@pytest.fixture
def model(tmp_path, tiny_model, tiny_tokenizer):
    """A folder with a tiny model, and a folder with a text."""
    from perplab.models import LanguageModel

    LanguageModel(tiny_model("llama"), tiny_tokenizer).save(tmp_path / "model")
    for place in range(6):
        (tmp_path / f"{place}.txt").write_text(f"The text of file {place} says {place * 7} things, and one more.")
    return tmp_path / "model"


@pytest.fixture
def run(model, capsys):
    """`run(*flags)` is the status, standard output and standard error of the suite on a tiny model."""

    def run(*flags):
        text = ["--corpus", f"{model.parent}:*.txt", "--split", "all", "--windows", "4", "--length", "16"]
        text += ["--calibration", str(model.parent / "0.txt")] if "--calibration" not in flags else []
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(model), *text, *map(str, flags)])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_one_command_measures_every_cell_and_writes_the_page(run, tmp_path):
    flags = ("--suite", "quantization", "--methods", "rtn", "--bits", "8,2", "--tasks", "", "--no-timed")
    status, output, _ = run(*flags, "--out", tmp_path / "grid", "--report", tmp_path / "page.html", "--json")
    assert status == 0
    record = json.loads(output)
    assert [row["name"] for row in record["rows"]] == ["reference", "rtn-8", "rtn-2"]
    reference, fine, coarse = (row["figures"]["log perplexity"]["value"] for row in record["rows"])
    assert abs(fine - reference) < abs(coarse - reference)
    assert record["rows"][1]["figures"]["log perplexity"]["difference"]["value"] == pytest.approx(fine - reference)
    assert (tmp_path / "page.html").read_text().count("rtn-2") > 2
    again = json.loads(run(*flags, "--out", tmp_path / "grid", "--json")[1])
    assert again == record


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--methods", "rtn"), "--suite quantization"),
        (("--suite", "quantization", "--methods", "zip"), "unknown method"),
        (("--suite", "quantization", "--bits", "four"), "whole numbers"),
        (("--suite", "quantization", "--bits", "9"), "bits is 9"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_in_one_line(run, flags, words):
    status, output, errors = run(*flags)
    assert (status, output) == (2, "")
    assert words in errors.splitlines()[-1]
