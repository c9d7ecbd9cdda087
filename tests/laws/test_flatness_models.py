import numpy as np
import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.laws.flatness import Batch, hessian_trace
from perplab.laws.flatness.batches import predictions
from perplab.laws.flatness.differentiation import Parameters, differentiable
from perplab.laws.flatness.hessian import HessianProduct, rademacher


@pytest.mark.parametrize("method", ["fisher", "fisher-batch", "hutchinson"])
def test_padding_on_the_right_changes_nothing(tiny_model, method):
    model = tiny_model("llama")
    batch = Batch.of_rows(torch.randint(101, (3, 6), generator=torch.Generator().manual_seed(0)))
    ids, labels = torch.zeros(3, 9, dtype=torch.int64), torch.full((3, 9), -100)
    ids[:, :5], labels[:, :5] = batch.input_ids, batch.labels
    plain, padded = (hessian_trace(model, [one], method, samples=2) for one in (batch, Batch(ids, labels)))
    assert padded.value == pytest.approx(plain.value, rel=1e-4)


@pytest.mark.parametrize("family_with_positions", ["perplab_decoder", "llama", "gpt2"])
def test_packed_documents_have_the_trace_of_the_same_documents_in_rows(tiny_model, family_with_positions):
    model = tiny_model(family_with_positions)
    documents = torch.randint(101, (2, 6), generator=torch.Generator().manual_seed(0))
    apart = Batch.of_rows(documents)
    positions = torch.arange(5).repeat(2)[None]
    packed = Batch(apart.input_ids.reshape(1, -1), apart.labels.reshape(1, -1), positions)
    one, other = (hessian_trace(model, [batch], "hutchinson", samples=3) for batch in (apart, packed))
    assert other.value == pytest.approx(one.value, rel=1e-3, abs=1e-3)


def test_every_family_has_both_traces(family, tiny_model):
    model = tiny_model(family)
    text = [Batch.of_rows(torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(0)))]
    for method in ("fisher", "hutchinson"):
        found = hessian_trace(model, text, method, samples=2)
        assert sum(found.by_module.values()) == pytest.approx(found.value)
    assert hessian_trace(model, text, "fisher", samples=2).value > 0


def test_every_family_bends_as_its_own_gradient_says(family, tiny_model):
    model = tiny_model(family).double()
    if family == "mixtral":
        model.set_experts_implementation("eager")  # the fast one knows no float64
    text = [Batch.of_rows(torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(0)))]
    probe, expected = bend_by_differences(model, text[0])
    parameters = Parameters.of(model)
    with differentiable(model, parameters):
        bend = HessianProduct(model, parameters, text, predictions(text)).quadratic_forms(text[0], [probe]).sum()
    assert bend == pytest.approx(expected, rel=5e-3, abs=0.05)


@pytest.mark.parametrize("mixer", ["sliding", "complex", "lstm"])
def test_decoders_of_twice_differentiable_mixers_have_both_traces(mixer):
    model, text = decoder_of(mixer)
    assert np.isfinite(hessian_trace(model, text, "hutchinson", samples=2).value)
    assert hessian_trace(model, text, samples=2).value > 0


@pytest.mark.parametrize("mixer", ["deltanet", "linear", "retnet"])
def test_decoders_whose_kernels_have_one_derivative_have_the_fisher_trace(mixer):
    model, text = decoder_of(mixer)
    with pytest.raises(PerplabError, match=r"cannot be differentiated twice.*method fisher"):
        hessian_trace(model, text, "hutchinson", samples=2)
    assert hessian_trace(model, text, samples=2).value > 0


def test_a_shared_parameter_counts_once(tiny_model):
    model = tiny_model("gpt2")
    text = [Batch.of_rows(torch.arange(8)[None])]
    found = hessian_trace(model, text, samples=1)
    assert "transformer.wte" in found.by_module
    assert "lm_head" not in found.by_module


def test_the_model_is_left_as_it_was(tiny_model):
    model = tiny_model("llama").train()
    model.lm_head.weight.requires_grad_(False)
    attention = model.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hessian_trace(model, [Batch.of_rows(torch.arange(8)[None])], "hutchinson", samples=1)
    assert model.training
    assert model.config._attn_implementation == attention
    assert [name for name, tensor in model.named_parameters() if not tensor.requires_grad] == ["lm_head.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.grad is None for tensor in model.parameters())


def test_packed_weights_are_refused(tiny_model):
    from perplab.kernels.quantized_matrix import QuantizedMatrix
    from perplab.models.packed_linear import PackedLinear

    model = tiny_model("llama")
    codes, ones = torch.ones(32, 32, dtype=torch.uint8), torch.ones(32, 1)
    model.model.layers[1].self_attn.q_proj = PackedLinear(QuantizedMatrix(codes, ones, ones.byte(), 4))
    with pytest.raises(PerplabError, match=r"layers\.1\.self_attn\.q_proj is packed.*model that was quantised"):
        hessian_trace(model, [Batch.of_rows(torch.arange(8)[None])])


def decoder_of(mixer):
    from perplab.models.decoder import DecoderForCausalLM
    from perplab.models.decoder_config import DecoderConfig

    shape = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = DecoderForCausalLM(DecoderConfig(**shape, num_hidden_layers=1, token_mixers=[mixer], sliding_window=3))
    return model, [Batch.of_rows(torch.randint(23, (2, 9)))]


def bend_by_differences(model, batch, step=1e-5):
    """A probe, and its curvature from the gradients of the model's own forward pass on both sides."""
    parameters = Parameters.of(model)
    probe = rademacher(parameters, torch.Generator().manual_seed(0))
    sizes = parameters.sizes

    def slope(distance):
        with torch.no_grad():
            for tensor, part in zip(parameters.tensors, probe.split(sizes), strict=True):
                tensor.add_(distance * part.view_as(tensor))
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        gradient = torch.autograd.grad(loss, parameters.tensors, allow_unused=True, materialize_grads=True)
        return float(torch.cat([part.flatten() for part in gradient]) @ probe)

    behind = slope(-step)
    ahead = slope(2 * step)
    slope(-step)
    return probe, (ahead - behind) / (2 * step)
