import json

import numpy as np
import pytest
import torch

from perplab.cli import main
from perplab.errors import PerplabError
from perplab.laws.flatness import FlatnessConfig, measure_flatness, read_batches, why_not_comparable
from perplab.models import LanguageModel, load
from perplab.scoring import score
from perplab.text import Document

DOCUMENTS = [Document(text, name, "d") for name, text in (("a", "hello world"), ("b", "abc"), ("c", "more text here"))]
QUICK = FlatnessConfig(samples=2, directions=2, radii=(0.1,), rows=2, window=6)


@pytest.fixture
def language_model(tiny_model, tiny_tokenizer):
    return lambda family="gpt2": LanguageModel(tiny_model(family), tiny_tokenizer, name=family)


@pytest.fixture
def saved(language_model, tmp_path):
    def save(family="gpt2"):
        language_model(family).save(tmp_path / family)
        return str(tmp_path / family)

    return save


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in DOCUMENTS))
    return str(path)


def run(capsys, *arguments):
    try:
        main(["flatness", *arguments])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    told = capsys.readouterr()
    return status, told.out, told.err


def quick(corpus):
    flags = ["--split", "all", "--samples", "2", "--directions", "2", "--window", "6", "--radii", "0.1"]
    return ["--corpus", corpus, *flags]


def test_every_token_is_predicted_once(language_model):
    text = read_batches(language_model(), DOCUMENTS, window=4, rows=2)
    labels = [batch.labels[batch.predicted] for batch in text.batches]
    expected = language_model().tokenizer("".join(document.text for document in DOCUMENTS))["input_ids"]
    assert sorted(torch.cat(labels).tolist()) == sorted(expected)
    counts = np.bincount(
        np.concatenate(text.documents),
        np.concatenate([batch.predicted.sum(dim=1).numpy() for batch in text.batches]),
    )
    assert counts.tolist() == [len(document.text) for document in DOCUMENTS]


def test_a_limit_of_tokens_takes_rows_from_all_of_the_text(language_model):
    text = read_batches(language_model(), DOCUMENTS, window=2, rows=4, tokens=6)
    assert sum(len(batch.input_ids) for batch in text.batches) == 3
    assert {0, 2} <= set(np.concatenate(text.documents).tolist())


def test_the_loss_is_the_score_of_the_text(language_model):
    model = language_model()
    found = measure_flatness(model, DOCUMENTS, FlatnessConfig(samples=1, eigenvalues=0, directions=0, tokens=0))
    scores = score(model, DOCUMENTS)
    assert found.tokens == len(scores.nll)
    assert found.loss == pytest.approx(float(np.mean(scores.nll)), rel=1e-5)
    assert found.loss_interval.low < found.loss < found.loss_interval.high


def test_one_measurement_holds_all_parts(language_model):
    stages = []
    found = measure_flatness(language_model(), DOCUMENTS, QUICK, watch=lambda what, *_: stages.append(what))
    assert list(dict.fromkeys(stages)) == ["trace", "eigenvalues", "profile"]
    assert sum(found.trace.by_module.values()) == pytest.approx(found.trace.value)
    assert [point.radius for point in found.profile] == [0, 0.1]
    assert found.profile[0].loss == pytest.approx(found.loss, rel=1e-5)
    assert found.spectrum.intervals[0].low <= found.spectrum.values[0] <= found.spectrum.intervals[0].high


def test_models_of_one_layout_compare_and_others_do_not(language_model):
    config = FlatnessConfig(samples=1, eigenvalues=0, directions=0)
    one, same, other = (
        measure_flatness(language_model(family), DOCUMENTS, config) for family in ("llama", "mistral", "gpt2")
    )
    assert why_not_comparable(one, same) is None
    assert "one parameterisation only" in why_not_comparable(one, other)


def test_the_command_prints_tables(capsys, saved, corpus):
    status, out, _ = run(capsys, saved(), *quick(corpus))
    assert status == 0
    for told in ("nats a token", "trace (fisher)", "eigenvalue 1", "transformer.wte", "random directions"):
        assert told in out


def test_the_command_writes_json_and_a_page(capsys, saved, corpus, tmp_path):
    first, second, page = saved("llama"), saved("gpt2"), tmp_path / "page.html"
    status, out, err = run(capsys, first, second, *quick(corpus), "--json", "--html", str(page))
    assert status == 0
    assert err.count("\n") == 1
    assert "warning" in err
    assert "one parameterisation only" in err
    told = json.loads(out)
    assert [model["model"] for model in told["models"]] == [first, second]
    assert told["models"][0]["trace"]["value"] > 0
    text = page.read_text()
    assert text.count("<svg") >= 1
    assert "Loss along random directions" in text
    assert "one parameterisation only" in text


def test_a_page_of_one_model_shows_where_the_trace_sits(capsys, saved, corpus, tmp_path):
    page = tmp_path / "page.html"
    assert run(capsys, saved(), *quick(corpus), "--html", str(page))[0] == 0
    assert "Where the trace sits" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no model is named"),
        (["{model}", "--parameters", "no.*"], "none of the model's"),
        (["{model}", "--samples", "0"], "samples is 0"),
        (["{model}", "--window", "9999"], "positions"),
        (["{model}", "--method", "exact"], "exact trace over"),
    ],
)
def test_what_cannot_be_measured_is_one_line(capsys, saved, corpus, arguments, told):
    model = saved()
    given = [argument.format(model=model) for argument in arguments]
    status, _, err = run(capsys, *given, "--corpus", corpus, "--split", "all")
    assert status == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_text_without_tokens_is_refused(language_model):
    with pytest.raises(PerplabError, match="no token to predict"):
        read_batches(language_model(), [])


def test_a_diffusion_model_is_refused(tiny_tokenizer):
    from perplab.models.diffusion import DiffusionConfig, DiffusionModel

    sizes = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LanguageModel(DiffusionModel(DiffusionConfig(**sizes)), tiny_tokenizer, name="d")
    with pytest.raises(PerplabError, match="d is a masked diffusion model"):
        measure_flatness(model, DOCUMENTS)


def test_a_quantised_model_is_refused(tmp_path):
    pytest.importorskip("compressed_tensors")
    from perplab.compression import QuantizeConfig, quantize

    quantize(load("pocket"), config=QuantizeConfig(method="rtn", bits=4)).save(tmp_path / "small")
    with pytest.raises(PerplabError, match="packed into few bits and has no gradient"):
        measure_flatness(load(tmp_path / "small", dtype="float32"), DOCUMENTS)
