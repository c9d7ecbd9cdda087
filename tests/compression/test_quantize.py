"""Quantised models: what they compute, how they are saved, and how a killed run goes on."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from perplab.compression import QuantizeConfig, quantize
from perplab.compression.calibration import calibration_windows
from perplab.compression.quantizing import RECORDS
from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.models.anatomy import anatomy
from perplab.models.packed_linear import quantized_layers
from perplab.text import Document, open_corpus

TEXT = [Document("the quick brown fox jumps over the lazy dog, " * 30, "", str(number)) for number in range(8)]
SMALL = {"windows": 6, "length": 32}


@pytest.fixture
def subject(tiny_model, tiny_tokenizer):
    return LanguageModel(tiny_model("llama").eval(), tiny_tokenizer)


def _with_dense_block(rounded, dense, index):
    """The rounded model with one block as it was: what that block's layers were calibrated in."""
    model = copy.deepcopy(rounded)
    model.model.layers[index] = copy.deepcopy(dense.model.layers[index])
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 60).view(1, -1)).logits


@pytest.mark.parametrize("method", ["awq", "quantease"])
def test_plain_transformers_reads_what_is_written(method, family, tiny_model, tiny_tokenizer, tmp_path):
    model = LanguageModel(tiny_model(family).eval(), tiny_tokenizer)
    config = QuantizeConfig(method=method, bits=4, sweeps=4, **SMALL)
    made = quantize(model, TEXT, config, out=tmp_path / "out")
    expected = logits(made.model)
    assert not torch.allclose(expected, logits(model.model), atol=1e-3)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.allclose(logits(read), expected, atol=1e-4)
    assert torch.allclose(logits(load(tmp_path / "out").model), expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rtn", "bits": 2, "group_size": 8, "symmetric": True},
        {"method": "gptq", "bits": 5, "range": "mse", "act_order": True},
        {"method": "spqr", "bits": 2},
        {"method": "quantease", "bits": 2, "outliers": 0.03},
        {"method": "quantease", "bits": 2, "outliers": 0.1, "outlier_columns": True},
        {"method": "quantease", "bits": 6, "start": "weights", "range": "percentile"},
        {"method": "llm-int8", "bits": 8},
    ],
)
def test_every_kind_of_result_survives_the_round_trip(settings, subject, tmp_path):
    records = []
    config = QuantizeConfig(sweeps=4, **SMALL, **settings)
    made = quantize(subject, TEXT, config, out=tmp_path / "out", log=records.append)
    assert torch.allclose(logits(load(tmp_path / "out").model), logits(made.model), atol=1e-5)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = {name: tensor for name, tensor in read.state_dict().items() if name.endswith("proj.weight")}
    for record in records:
        weight = ours[f"{record.path}.weight"]
        before = subject.model.get_submodule(record.path).weight
        assert 0 < (weight - before).norm() < before.norm()
    if settings["method"] == "quantease" and "outliers" in settings:
        assert all(record.outliers for record in records)
        group_levels = 2 ** settings["bits"]
        assert max(len(row.unique()) for weight in ours.values() for row in weight) > group_levels


def test_the_given_model_stays_as_it_is(family, tiny_model, tiny_tokenizer):
    model = LanguageModel(tiny_model(family).eval(), tiny_tokenizer)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    quantize(model, TEXT, QuantizeConfig(method="awq", bits=2, **SMALL))
    after = model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_sixteen_levels_of_a_weight_are_what_is_left(subject):
    made = quantize(subject, TEXT, QuantizeConfig(method="gptq", bits=4, **SMALL))
    for layer in quantized_layers(made.model).values():
        for row in layer.weight:
            assert len(row.unique()) <= 16
    assert anatomy(made.model).head.weight is subject.model.lm_head.weight


def test_only_the_named_layers_are_rounded(subject):
    made = quantize(subject, TEXT, QuantizeConfig(method="rtn", layers=r"0\.mlp\.down", **SMALL))
    assert list(quantized_layers(made.model)) == ["model.layers.0.mlp.down_proj"]


def test_sequential_calibration_shows_later_layers_the_rounded_ones(subject):
    plain, staged = (
        quantize(
            subject, TEXT, QuantizeConfig(method="gptq", bits=2, layers="layers.0.", sequential=sequential, **SMALL)
        )
        for sequential in (False, True)
    )
    codes = [
        {path: layer.quantized.codes for path, layer in quantized_layers(made.model).items()}
        for made in (plain, staged)
    ]
    same = {path.rpartition(".")[2] for path in codes[0] if torch.equal(codes[0][path], codes[1][path])}
    assert same == {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_killed_run_goes_on_to_the_same_bytes(method, subject, tmp_path):
    config = QuantizeConfig(method=method, bits=3, **SMALL)
    quantize(subject, TEXT, config, out=tmp_path / "whole")

    def kill_at(most):
        def watch(_, done, __):
            if done == most:
                raise KeyboardInterrupt

        return watch

    solved = []
    for done in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            quantize(subject, TEXT, config, out=tmp_path / "killed", watch=kill_at(done))
    quantize(subject, TEXT, config, out=tmp_path / "killed", log=solved.append)
    assert len(solved) == 14
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "killed").iterdir())
    weights = [file for file in files if file.endswith(".safetensors") or file == "config.json"]
    assert all((tmp_path / "whole" / f).read_bytes() == (tmp_path / "killed" / f).read_bytes() for f in weights)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_killed_after_its_model_was_written_finishes(subject, tmp_path, monkeypatch):
    config = QuantizeConfig(method="rtn", bits=3, **SMALL)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("perplab.compression.quantizing.write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(subject, TEXT, config, out=tmp_path / "out")
    assert (tmp_path / "out").exists()
    with pytest.raises(PerplabError, match="exists"):
        quantize(subject, TEXT, QuantizeConfig(method="rtn", bits=4, **SMALL), out=tmp_path / "out")
    quantize(subject, TEXT, config, out=tmp_path / "out")
    assert (tmp_path / "out" / RECORDS).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_unfinished_run_with_other_settings_is_not_touched(subject, tmp_path):
    def stop(_, done, __):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(subject, TEXT, QuantizeConfig(method="gptq", bits=3, **SMALL), out=tmp_path / "out", watch=stop)
    kept = sorted((tmp_path / ".out.unfinished").iterdir())
    with pytest.raises(PerplabError, match="other settings"):
        quantize(subject, TEXT, QuantizeConfig(method="gptq", bits=4, **SMALL), out=tmp_path / "out")
    assert sorted((tmp_path / ".out.unfinished").iterdir()) == kept


def test_each_block_is_calibrated_on_what_the_rounded_blocks_before_it_compute(subject):
    records = {}
    config = QuantizeConfig(method="gptq", bits=2, **SMALL)
    made = quantize(subject, TEXT, config, log=lambda record: records.setdefault(record.path, record))
    tokens = calibration_windows(TEXT, subject.tokenizer, windows=SMALL["windows"], length=SMALL["length"], seed=0)
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj"):
        inputs = []
        model = _with_dense_block(made.model, subject.model, int(path.split(".")[2]))
        model.get_submodule(path).register_forward_pre_hook(lambda _, given, into=inputs: into.append(given[0]))
        with torch.no_grad():
            model(tokens)
        before = subject.model.get_submodule(path).weight
        change, output = (inputs[0] @ w.T for w in (made.model.get_submodule(path).weight - before, before))
        expected = (change.square().sum() / output.square().sum()).item()
        assert records[path].relative_error == pytest.approx(expected, rel=1e-3)


def test_the_folder_tells_what_happened_to_each_layer(subject, tmp_path):
    config = QuantizeConfig(method="quantease", bits=3, sweeps=5, **SMALL)
    made = quantize(subject, TEXT, config, out=tmp_path / "out")
    layers = json.loads((tmp_path / "out" / RECORDS).read_text())["layers"]
    assert [layer["path"] for layer in layers] == list(quantized_layers(made.model))
    for layer in layers:
        assert layer["relative_error"] == pytest.approx(layer["trace"][-1], rel=1e-3)
        assert layer["bits_per_weight"] == pytest.approx(3 + 19 / layer["shape"][1])
    figures = made.lineage.figures
    assert figures["relative error"] == pytest.approx(sum(layer["relative_error"] for layer in layers) / len(layers))


def test_an_expert_without_tokens_is_rounded_to_the_nearest(tiny_model, tiny_tokenizer):
    model = tiny_model("mixtral").eval()
    with torch.no_grad():
        for block in anatomy(model).blocks:
            block.projections["router"].matrix[0] = 0
            block.projections["router"].matrix[1:] *= 1e-3
            block.norms["mlp_input"].module.weight.abs_()
    subject, records = LanguageModel(model, tiny_tokenizer), []
    rounded = quantize(subject, TEXT, QuantizeConfig(method="gptq", **SMALL), log=records.append)
    nearest = quantize(subject, TEXT, QuantizeConfig(method="rtn", **SMALL))
    unseen = [record.path for record in records if not record.tokens]
    for path in unseen:
        parameter, _, expert = path.rpartition(".")
        weights = [made.model.get_parameter(parameter)[int(expert)] for made in (rounded, nearest)]
        assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "bits is 1"),
        ({"bits": 9}, "bits is 9"),
        ({"method": "llm-int8", "bits": 4}, "llm-int8 with 4 bits"),
        ({"outliers": 2.0}, "outliers is 2.0"),
        ({"sweeps": 0}, "sweeps is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(PerplabError, match=message):
        QuantizeConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 20}, "group_size 20 does not divide the 32 inputs of model.layers.0.self_attn.q_proj"),
        ({"layers": "lm_head"}, "embedding and head stay"),
        ({"layers": "nothing"}, "no layer's path matches"),
        ({"length": 4096}, "windows of 4096 tokens for a model of 2048 positions"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings, message, subject):
    with pytest.raises(PerplabError, match=message):
        quantize(subject, TEXT, QuantizeConfig(method="gptq", **SMALL | settings))


def test_bad_models_and_folders_are_refused_before_any_work(subject, tmp_path):
    config = QuantizeConfig(method="rtn", **SMALL)
    with pytest.raises(PerplabError, match="without calibration text"):
        quantize(subject, None, QuantizeConfig(method="gptq"))
    with pytest.raises(PerplabError, match="exists"):
        quantize(subject, TEXT, config, out=tmp_path)
    once = quantize(subject, TEXT, config)
    with pytest.raises(PerplabError, match="quantised already"):
        quantize(once, TEXT, config)
    with torch.no_grad():
        subject.model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(PerplabError, match=r"layers\.1\.mlp\.up_proj holds weights that are not finite"):
        quantize(subject, TEXT, config)


def test_each_solver_does_what_it_is_for_on_a_trained_model():
    pocket = load("pocket", dtype=torch.float32)
    text = list(open_corpus("builtin:python", "train").limited(150_000))
    error = {}
    for name, settings in {
        "rtn": {"method": "rtn"},
        "gptq": {"method": "gptq"},
        "quantease": {"method": "quantease", "start": "gptq", "sweeps": 6},
        "outliers": {"method": "quantease", "outliers": 0.01, "sweeps": 6},
        "awq": {"method": "awq"},
    }.items():
        config = QuantizeConfig(bits=3, windows=8, length=128, layers=r"layers\.0\.", **settings)
        error[name] = quantize(pocket, text, config).lineage.figures["relative error"]
    assert error["outliers"] < error["quantease"] < error["gptq"] < error["rtn"]
    assert error["awq"] < error["rtn"]
