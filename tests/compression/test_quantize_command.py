"""`perplab quantize` on the command line."""

import json

import pytest

from perplab.cli import main
from perplab.models import LanguageModel, load
from perplab.models.packed_linear import quantized_layers


@pytest.fixture
def folder(tiny_model, tiny_tokenizer, tmp_path):
    LanguageModel(tiny_model("llama").eval(), tiny_tokenizer).save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n\n" * 200, encoding="utf-8")
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["quantize", *arguments])
    return stop.value.code


def test_it_says_what_happened_to_each_layer(folder, capsys):
    arguments = (str(folder / "model"), "--method", "quantease", "--bits", "3", "--sweeps", "3", "--windows", "4")
    run(*arguments, "--length", "16", "--calibration", f"{folder}/text.txt", "--out", str(folder / "out"), "--json")
    told = json.loads(capsys.readouterr().out)
    assert [layer["path"] for layer in told["layers"]] == list(quantized_layers(load(folder / "out").model))
    assert all(layer["relative_error"] > 0 for layer in told["layers"])
    assert told["figures"]["bits per weight"] == pytest.approx(3 + 19 / 32, abs=0.2)


def test_the_printed_page_names_folder_bits_and_sizes(folder, capsys):
    run(str(folder / "model"), "--method", "rtn", "--group-size", "16", "--out", str(folder / "out"))
    printed = capsys.readouterr().out
    assert "model.layers.1.mlp.down_proj" in printed
    assert f"{folder / 'out'}: 5.25 bits a weight" in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "1"), "bits is 1"),
        (("--method", "rtn", "--group-size", "20"), "give 16, which divides those of all layers"),
        (("--calibration", "nowhere.txt"), "nowhere.txt"),
        (("--calibration", "{folder}/short.txt"), "less than one window"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, folder, capsys):
    (folder / "short.txt").write_text("short", encoding="utf-8")
    before = sorted(folder.iterdir())
    given = [argument.format(folder=folder) for argument in arguments]
    assert run(str(folder / "model"), "--out", str(folder / "out"), "--no-progress", *given) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
