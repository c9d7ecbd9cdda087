"""The fused weight: where it begins, what it can express, and that folding changes nothing."""

import copy

import pytest
import torch
from deeper_models import deeper
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from perplab.compression.fusion.fusion_layer import FusedMatrix, fold, graft, make_trainable, trainables
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def seeded():
    return torch.Generator().manual_seed(0)


def fused(model, receiver=0, donor=1, rank=3):
    """A runner whose block `receiver` has taken block `donor`."""
    runner = BlockRunner(model)
    generator = seeded()
    make_trainable(runner.blocks[receiver], rank, generator)
    graft(runner.blocks[receiver], runner.blocks[donor], generator)
    return runner


@torch.no_grad()
def disturb(block):
    for parameters in trainables(block):
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=seeded()) * 0.1)


def test_a_fused_block_begins_as_the_block_it_was(family, tiny_model):
    model = tiny_model(family)
    runner = BlockRunner(copy.deepcopy(model))
    stream = runner.enter(IDS)
    with torch.no_grad():
        expected = runner.run(0, stream)
        runner = fused(model)
        found = runner.run(0, runner.enter(IDS))
    assert (found - expected).abs().max() < 1e-6


def test_only_the_factors_that_begin_at_zero_have_a_gradient_at_first(tiny_model):
    runner = fused(deeper(tiny_model("qwen2"), 2))
    stream = runner.enter(IDS)
    with parametrize.cached():
        runner.run(0, stream).square().mean().backward()
    still = {"lora_a", "coefficients_right"}
    for name, parameter in runner.blocks[0].named_parameters():
        if "original" not in name:
            moves = not still & set(name.split("."))
            assert bool(parameter.grad.abs().sum() > 0) == moves or "k_proj.parametrizations.bias" in name, name
    assert all(parameter.grad is None for parameter in runner.blocks[1].parameters())


def test_folding_leaves_a_plain_model_that_computes_the_same(family, tiny_model):
    model = tiny_model(family)
    names = set(model.state_dict())
    runner = fused(model)
    disturb(runner.blocks[0])
    with torch.no_grad():
        before = runner.run(0, runner.enter(IDS))
        unfused = BlockRunner(tiny_model(family))
        assert (before - unfused.run(0, unfused.enter(IDS))).abs().max() > 1e-2
        fold(runner.blocks[0])
        after = runner.run(0, runner.enter(IDS))
    assert torch.allclose(before, after, atol=1e-5)
    assert set(model.state_dict()) == names


def blocks_of_one_layer(make):
    return [nn.ModuleDict({"layer": make()}) for _ in range(2)]


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 7), lambda: Conv1D(7, 5)], ids=["Linear", "Conv1D"])
def test_coefficients_of_all_alpha_add_alpha_times_the_donor(make):
    receiver, donor = blocks_of_one_layer(make)
    own, given = receiver.layer.weight.detach().clone(), donor.layer.weight.detach()
    nn.init.normal_(donor.layer.bias)
    own_bias = receiver.layer.bias.detach().clone()
    make_trainable(receiver, 1, seeded())
    graft(receiver, donor, seeded())
    matrix, vector = (receiver.layer.parametrizations[name][0] for name in ("weight", "bias"))
    for alpha in (1.0, -0.3):
        with torch.no_grad():
            matrix.coefficients_left[0].fill_(alpha)
            matrix.coefficients_right[0].fill_(1)
            vector.coefficients[0].fill_(alpha)
        assert torch.allclose(receiver.layer.weight, own + alpha * given, atol=1e-6)
        assert torch.allclose(receiver.layer.bias, own_bias + alpha * donor.layer.bias, atol=1e-6)


def test_the_fused_weight_is_the_formula_with_two_donors():
    weight, *donors = (torch.randn(6, 4) for _ in range(3))
    fusion = FusedMatrix(weight, 2, transposed=False, generator=seeded())
    for donor in donors:
        fusion.add_donor(donor, seeded())
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_()
    expected = weight + torch.einsum("or,ri->oi", fusion.lora_b, fusion.lora_a)
    for left, right, donor in zip(fusion.coefficients_left, fusion.coefficients_right, donors, strict=True):
        expected = expected + torch.einsum("or,ri,oi->oi", left, right, donor)
    assert torch.allclose(fusion(weight), expected, atol=1e-5)


def test_a_removed_block_that_had_absorbed_another_gives_its_fused_weight():
    first, second, third = (nn.ModuleDict({"layer": nn.Linear(5, 7)}) for _ in range(3))
    make_trainable(second, 2, seeded())
    graft(second, first, seeded())
    disturb(second)
    fusion = second.layer.parametrizations.weight[0]
    with torch.no_grad():
        manual = second.layer.parametrizations.weight.original + fusion.lora_b @ fusion.lora_a
        manual = manual + (fusion.coefficients_left[0] @ fusion.coefficients_right[0]) * first.layer.weight
    fold(second)
    make_trainable(third, 2, seeded())
    graft(third, second, seeded())
    assert torch.allclose(third.layer.parametrizations.weight[0].donors[0], manual, atol=1e-6)


def test_norms_shift_and_take_no_donor(tiny_model):
    block = fused(deeper(tiny_model("gpt2"), 2)).blocks[0]
    assert not block.ln_1.parametrizations.weight[0].donors
    assert not block.ln_1.parametrizations.bias[0].donors
    assert block.attn.c_attn.parametrizations.bias[0].donors
    assert len(block.attn.c_attn.parametrizations.weight[0].donors) == 1


def test_what_is_trained_is_float32_in_a_model_that_is_not(tiny_model):
    runner = fused(tiny_model("llama").to(torch.bfloat16))
    block = runner.blocks[0]
    assert {parameter.dtype for group in trainables(block) for parameter in group} == {torch.float32}
    assert runner.run(0, runner.enter(IDS)).dtype == torch.bfloat16
    fold(block)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.bfloat16}


def test_a_donor_of_another_shape_is_refused():
    receiver, donor = nn.ModuleDict({"layer": nn.Linear(5, 7)}), nn.ModuleDict({"layer": nn.Linear(5, 8)})
    make_trainable(receiver, 1, seeded())
    with pytest.raises(PerplabError, match=r"no layer\.bias of one shape"):
        graft(receiver, donor, seeded())
