import copy

import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models.packed_linear import LLMInt8Linear, PackedLinear, packable, quantized_layers, replace_linear

UP = {"llama": "model.layers.0.mlp.up_proj", "mixtral": "model.layers.0.self_attn.q_proj"}


def random_matrix(out=96, columns=64, bits=4, groups=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (out, columns), dtype=torch.uint8, generator=generator)
    zero = torch.randint(0, 2**bits, (out, groups), dtype=torch.uint8, generator=generator)
    return QuantizedMatrix(codes, torch.rand(out, groups, generator=generator).to(dtype), zero, bits)


def int8_matrix(out=24, columns=40):
    matrix = random_matrix(out, columns, bits=8, groups=1)
    return QuantizedMatrix(matrix.codes.clamp(min=1), matrix.scale, torch.full_like(matrix.zero, 128), 8)


def random_rows(rows=5, columns=40):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 3


def assert_same_matrix(left, right):
    assert left.bits == right.bits
    for part in ("codes", "scale", "zero"):
        assert torch.equal(getattr(left, part), getattr(right, part))


def test_layer_computes_what_a_linear_layer_with_its_weight_does():
    matrix, bias = random_matrix(), torch.randn(96)
    linear = nn.Linear(64, 96)
    linear.weight, linear.bias = nn.Parameter(matrix.dequantized()), nn.Parameter(bias)
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(PackedLinear(matrix, bias)(x), linear(x))


def test_layer_gives_its_matrix_back_also_after_a_change_of_type_and_back():
    matrix = random_matrix(dtype=torch.bfloat16)
    layer = PackedLinear(matrix)
    assert_same_matrix(layer.quantized, matrix)
    assert_same_matrix(layer.float().to(torch.bfloat16).quantized, matrix)


def test_layer_moved_to_a_type_is_the_layer_made_in_it():
    moved = PackedLinear(random_matrix()).to(torch.bfloat16)
    made = PackedLinear(moved.quantized)
    x = torch.randn(3, 64).to(torch.bfloat16)
    assert torch.equal(moved(x), made(x))
    assert {name: buffer.dtype for name, buffer in moved.named_buffers()} == {
        name: buffer.dtype for name, buffer in made.named_buffers()
    }


def test_memory_is_that_of_the_codes_and_their_scales():
    out, columns, group = 256, 1024, 128
    matrix = random_matrix(out, columns, groups=columns // group, dtype=torch.bfloat16)
    held = sum(buffer.numel() * buffer.element_size() for buffer in PackedLinear(matrix).buffers())
    codes = out * columns * 4 / 8
    scales = out * columns / group * (2 + 1 + 4)  # scale, zero, and both as the kernel reads them
    assert held <= codes + scales
    assert held < 0.3 * out * columns * 2


@pytest.mark.parametrize("layer", [PackedLinear(random_matrix(), torch.ones(96)), LLMInt8Linear(int8_matrix())])
def test_state_dict_is_enough_to_restore_a_layer(layer):
    blank = copy.deepcopy(layer)
    for buffer in blank.buffers():
        buffer.zero_()
    blank.load_state_dict(layer.state_dict())
    assert_same_matrix(blank.quantized, layer.quantized)
    incomplete = {name: tensor for name, tensor in layer.state_dict().items() if name != "weight_scale"}
    with pytest.raises(RuntimeError, match="weight_scale"):
        blank.load_state_dict(incomplete)
    with pytest.raises(RuntimeError, match="extra"):
        blank.load_state_dict(layer.state_dict() | {"extra": torch.zeros(1)})


def test_copies_share_nothing():
    layer = PackedLinear(random_matrix(dtype=torch.bfloat16))
    x = torch.randn(2, 64).to(torch.bfloat16)
    before = layer(x)
    twin = copy.deepcopy(layer)
    layer.planes.zero_()
    assert torch.equal(twin(x), before)
    assert_same_matrix(twin.quantized, random_matrix(dtype=torch.bfloat16))


def test_gradient_reaches_the_input_and_no_weight(tiny_model):
    model = tiny_model("llama")
    replace_linear(model, UP["llama"], random_matrix(48, 32))
    embedded = torch.randn(1, 4, 32, requires_grad=True)
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.get_submodule(UP["llama"]).parameters())


def test_replacing_keeps_the_bias_and_finds_the_layer(tiny_model):
    model = tiny_model("opt")
    path = "model.decoder.layers.0.fc1"
    bias = model.get_submodule(path).bias.detach().clone()
    replace_linear(model, path, random_matrix(48, 32))
    assert quantized_layers(model) == {path: model.get_submodule(path)}
    assert torch.equal(model.get_submodule(path).bias, bias)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("gpt2", "lm_head"),  # tied to the embedding
        ("gpt2", "transformer.h.0.mlp.c_fc"),  # Conv1D
        ("llama", "model.norm"),
        ("mixtral", UP["mixtral"]),  # beside stacks of experts
    ],
)
def test_layers_that_no_checkpoint_could_hold_packed_are_refused(tiny_model, family, path):
    model = tiny_model(family)
    assert not packable(model, path)
    with pytest.raises(PerplabError, match=path):
        replace_linear(model, path, random_matrix())
    assert not quantized_layers(model)


def test_matrix_of_another_shape_is_refused(tiny_model):
    with pytest.raises(PerplabError, match=r"\(96, 64\) does not fit .* \(48, 32\)"):
        replace_linear(tiny_model("llama"), UP["llama"], random_matrix())


def test_llm_int8_with_threshold_0_rounds_no_input():
    matrix, x = int8_matrix(), random_rows()
    layer = LLMInt8Linear(matrix, threshold=0.0)
    torch.testing.assert_close(layer(x), x @ matrix.dequantized().T)


def test_llm_int8_with_infinite_threshold_is_the_vector_wise_int8_product():
    matrix, x = int8_matrix(), random_rows()
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    codes, steps = (x / scale).round().long(), matrix.codes.long() - 128
    expected = (codes @ steps.T).float() * scale * matrix.scale.T
    torch.testing.assert_close(LLMInt8Linear(matrix, threshold=float("inf"))(x), expected)


def test_llm_int8_multiplies_features_with_an_outlier_in_the_input_type():
    matrix, x = int8_matrix(), random_rows().clamp(-5, 5)
    x[2, 7] = 80.0
    mixed = LLMInt8Linear(matrix)(x)
    outlier_only = torch.zeros_like(x)
    outlier_only[:, 7] = x[:, 7]
    rest = LLMInt8Linear(matrix, threshold=float("inf"))(x - outlier_only)
    torch.testing.assert_close(mixed, rest + outlier_only @ matrix.dequantized().T)
    exact = x @ matrix.dequantized().T
    plain = LLMInt8Linear(matrix, threshold=float("inf"))(x)
    assert (mixed - exact).norm() < 0.5 * (plain - exact).norm()


def test_llm_int8_of_zeros_is_its_bias():
    layer = LLMInt8Linear(int8_matrix(), torch.arange(24.0))
    assert torch.equal(layer(torch.zeros(2, 3, 40)), torch.arange(24.0).expand(2, 3, 24))


def test_llm_int8_refuses_other_forms():
    for matrix in (random_matrix(bits=8), random_matrix(groups=1, bits=8), random_matrix(groups=1)):
        with pytest.raises(PerplabError, match=r"LLM\.int8"):
            LLMInt8Linear(matrix)
