import copy
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from perplab import open_corpus, score
from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models import LanguageModel, load
from perplab.models.compressed_checkpoint import is_quantized
from perplab.models.compressed_form import compressed_form, matrix_of
from perplab.models.packed_linear import LLMInt8Linear, packable, quantized_layers, replace_linear

TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
SYMMETRIC = ((4, 16, True), (3, None, True), (8, None, True), (5, 8, True))  # bits, group size, symmetric
MIXED = ((4, 16, False), (3, None, True), (8, None, False), (5, 8, True))
UNIFORM = ((4, 16, False),)


def rounded(weight, bits, group_size, symmetric):
    """A weight by plain min-max rounding."""
    out = len(weight)
    grouped = weight.detach().view(out, -1, group_size or weight.shape[1])
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round()
    codes = (grouped / scale + zero).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return QuantizedMatrix(codes.view(out, -1), scale[..., 0], zero[..., 0].to(torch.uint8), bits)


def int8_layer(linear, threshold=6.0):
    scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    codes = ((linear.weight.detach() / scale).round() + 128).to(torch.uint8)
    return LLMInt8Linear(
        QuantizedMatrix(codes, scale, torch.full_like(scale, 128, dtype=torch.uint8), 8), linear.bias, threshold
    )


def quantize(model, schemes):
    """Replace every linear layer that can be, with one scheme after the other."""
    paths = [path for path, _ in model.named_modules() if packable(model, path)]
    for index, path in enumerate(paths):
        weight = model.get_submodule(path).weight
        replace_linear(model, path, rounded(weight, *schemes[index % len(schemes)]))


def dense_twin(model):
    """The model with the numbers of its quantised layers in ordinary linear layers."""
    twin = copy.deepcopy(model)
    for path, layer in quantized_layers(twin).items():
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight = nn.Parameter(layer.weight)
        linear.bias = layer.bias
        twin.set_submodule(path, linear)
    return twin


@torch.no_grad()
def logits_of(model):
    return model(TOKENS).logits


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def packed(tiny_model, tiny_tokenizer):
    """`packed(family)` is a language model with quantised layers."""

    def make(family="llama", schemes=MIXED):
        model = tiny_model(family)
        quantize(model, schemes)
        return LanguageModel(model, tiny_tokenizer)

    return make


def same_weights(one, other):
    layers, others = quantized_layers(one), quantized_layers(other)
    assert layers.keys() == others.keys()
    for path, layer in layers.items():
        left, right = layer.quantized, others[path].quantized
        assert left.bits == right.bits
        assert left.scale.dtype == right.scale.dtype
        for part in ("codes", "scale", "zero"):
            assert torch.equal(getattr(left, part), getattr(right, part)), (path, part)


@pytest.mark.parametrize("schemes", [SYMMETRIC, UNIFORM], ids=["symmetric", "uniform"])
def test_plain_transformers_computes_the_same_from_the_saved_folder(packed, tmp_path, family, schemes):
    if family.startswith("falcon") and schemes is SYMMETRIC:
        pytest.skip("compressed-tensors runs no packed layer of Falcon's own class")
    language_model = packed(family, schemes)
    language_model.save(tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(theirs), logits_of(language_model.model), rtol=1e-5, atol=1e-5)
    for path, layer in quantized_layers(language_model.model).items():
        assert torch.equal(theirs.get_submodule(path).weight, layer.weight), path


def test_round_trip_keeps_every_quantised_weight_exactly(packed, tmp_path, family):
    language_model = packed(family)
    language_model.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved").model
    assert quantized_layers(loaded) or family in ("gpt2", "mixtral")
    same_weights(language_model.model, loaded)
    torch.testing.assert_close(logits_of(loaded), logits_of(language_model.model), rtol=1e-5, atol=1e-5)


def test_saving_twice_and_saving_what_was_loaded_give_the_same_bytes(packed, tmp_path, family):
    for name in ("first", "second"):
        packed(family).save(tmp_path / name)
    load(tmp_path / "first").save(tmp_path / "third")
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second") == files_of(tmp_path / "third")


def test_saving_leaves_the_model_quantised_as_it_was(packed, tmp_path, family):
    language_model, twin = packed(family), packed(family)
    language_model.save(tmp_path / "saved")
    same_weights(language_model.model, twin.model)
    assert is_quantized(language_model.model.config) is None


def test_dtype_is_that_of_the_scales_in_memory(packed, tmp_path):
    packed().save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", dtype="bfloat16").model
    assert {layer.quantized.scale.dtype for layer in quantized_layers(loaded).values()} == {torch.bfloat16}
    twin = dense_twin(loaded)
    exact = logits_of(copy.deepcopy(twin).float())
    error, error_of_twin = ((logits_of(model).float() - exact).norm() for model in (loaded, twin))
    assert error < 1.5 * error_of_twin


def test_packed_model_scores_as_its_dense_twin(packed, tmp_path):
    packed().save(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    twin = LanguageModel(dense_twin(loaded.model), loaded.tokenizer)
    (tmp_path / "text.txt").write_text("what did each token cost? " * 20)
    texts = open_corpus(str(tmp_path / "text.txt"))
    ours, theirs = score(loaded, texts), score(twin, texts)
    torch.testing.assert_close(torch.tensor(ours.nll), torch.tensor(theirs.nll), rtol=1e-5, atol=1e-5)


def test_packed_model_generates_what_its_dense_twin_does(packed, tmp_path):
    packed().save(tmp_path / "saved")
    model = load(tmp_path / "saved").model
    generated = [
        one.generate(TOKENS[:1], max_new_tokens=12, do_sample=False, pad_token_id=0)
        for one in (model, dense_twin(model))
    ]
    assert torch.equal(*generated)


def test_config_says_what_it_is_quantised_with(packed, tiny_model, tiny_tokenizer, tmp_path):
    packed().save(tmp_path / "packed")
    LanguageModel(tiny_model("llama"), tiny_tokenizer).save(tmp_path / "dense")
    assert is_quantized(AutoConfig.from_pretrained(tmp_path / "packed")) == "compressed-tensors"
    assert is_quantized(AutoConfig.from_pretrained(tmp_path / "dense")) is None


def test_fingerprint_follows_the_codes(packed, tmp_path):
    language_model = packed()
    before = language_model.fingerprint
    assert packed().fingerprint == before
    layer = next(iter(quantized_layers(language_model.model).values()))
    layer.planes[0, 0, 0, 0] ^= 1
    assert language_model.fingerprint != before


def test_llm_int8_layers_come_back_with_their_thresholds(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("llama")
    path = "model.layers.0.mlp.up_proj"
    replace_linear(model, path, int8_layer(model.get_submodule(path), threshold=0.25))
    quantize(model, SYMMETRIC)
    LanguageModel(model, tiny_tokenizer).save(tmp_path / "saved")
    loaded = load(tmp_path / "saved").model
    same_weights(model, loaded)
    assert isinstance(loaded.get_submodule(path), LLMInt8Linear)
    assert loaded.get_submodule(path).threshold == 0.25
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    load(tmp_path / "saved").save(tmp_path / "again")
    assert files_of(tmp_path / "saved") == files_of(tmp_path / "again")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    logits_of(theirs)
    assert torch.equal(theirs.get_submodule(path).weight, model.get_submodule(path).weight)


def test_missing_tensor_of_a_quantised_layer_is_named(packed, tmp_path):
    folder = tmp_path / "saved"
    packed().save(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight_scale"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PerplabError, match=r"lacks model\.layers\.1\.self_attn\.q_proj\.weight_scale \(1 in all\)"):
        load(folder)


def change_groups(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for group in config["quantization_config"]["config_groups"].values():
        change(group)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda group: group.update(input_activations={"num_bits": 8, "dynamic": True}), "quantises activations"),
        (lambda group: group["weights"].update(actorder="group"), "g_idx"),
        (lambda group: group["weights"].update(type="float", num_bits=8), "not integers"),
        (lambda group: group.update(format="int-quantized"), "stores its weights as int-quantized"),
        (lambda group: group["weights"].update(strategy="nonsense"), "compressed-tensors refuses"),
    ],
)
def test_schemes_that_no_layer_computes_are_refused(packed, tmp_path, change, match):
    packed().save(tmp_path / "saved")
    change_groups(tmp_path / "saved", change)
    with pytest.raises(PerplabError, match=match) as caught:
        load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_targets_by_class_and_pattern_are_resolved(packed, tmp_path):
    """As other writers of the format name layers: all of a class, but for those that match a pattern."""
    model = packed("llama", UNIFORM)
    model.save(tmp_path / "saved")
    change_groups(tmp_path / "saved", lambda group: group.update(targets=["Linear"]))
    same_weights(load(tmp_path / "saved").model, model.model)
    change_groups(tmp_path / "saved", lambda group: group.update(targets=[r"re:.*_proj$", "lm_head"]))
    same_weights(load(tmp_path / "saved").model, model.model)


def test_missing_package_is_named_with_its_extra(packed, tmp_path, monkeypatch):
    packed().save(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    for attempt in (lambda: load(tmp_path / "saved"), lambda: packed().save(tmp_path / "again")):
        with pytest.raises(PerplabError, match=r"perplab\[compression\]"):
            attempt()
    assert not (tmp_path / "again").exists()


def test_loading_and_saving_a_packed_model_print_nothing(packed, tmp_path, capfd):
    packed().save(tmp_path / "saved")
    load(tmp_path / "saved").save(tmp_path / "again")
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40)
@given(bits=st.integers(1, 8), out=st.integers(1, 70), groups=st.integers(1, 3), width=st.integers(1, 40))
def test_stored_form_is_32_codes_in_as_many_words_as_a_code_has_bits(bits, out, groups, width):
    generator = torch.Generator().manual_seed(out * width + groups)
    codes = torch.randint(0, 2**bits, (out, groups * width), dtype=torch.uint8, generator=generator)
    zero = torch.randint(0, 2**bits, (out, groups), dtype=torch.uint8, generator=generator)
    matrix = QuantizedMatrix(codes, torch.rand(out, groups), zero, bits)
    form = compressed_form(matrix)
    bit_rows = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., :bits].reshape(out, -1)
    padded = np.pad(bit_rows, ((0, 0), (0, -bit_rows.shape[1] % 32)))
    words = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    assert np.array_equal(form["weight_packed"].numpy(), words)
    back = matrix_of(form, bits)
    assert torch.equal(back.codes, codes)
    assert torch.equal(back.zero, zero)
    assert torch.equal(back.dequantized(), matrix.dequantized())
