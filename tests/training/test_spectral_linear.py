import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers.pytorch_utils import Conv1D

from perplab.training.low_rank.spectral_linear import SpectralLinear
from perplab.training.low_rank.spectral_product import spectral_product


def drawing(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(kind=nn.Linear, out=7, in_=11, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(in_, out) if kind is nn.Linear else Conv1D(out, in_)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.to(dtype)


def spectral(rank=3, enhanced=True, share=0.5, **options):
    return SpectralLinear(plain(**options), rank, drawing(), singular_share=share, enhanced=enhanced)


def train_step(layer, optimizer, inputs, target):
    (layer(inputs) - target).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    layer.after_update()


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize(("out", "in_"), [(7, 11), (11, 7), (8, 8), (1, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_layer_computes_what_the_plain_one_does_and_gives_it_back(kind, out, in_, dtype, tolerance):
    linear = plain(kind, out, in_, dtype)
    inputs = torch.randn(2, 3, in_, dtype=dtype)
    expected, weight = linear(inputs), linear.weight.detach().clone()
    layer = SpectralLinear(linear, min(3, out), drawing())
    for computed in (layer(inputs), layer.merge()(inputs)):
        assert (computed - expected).norm() <= tolerance * expected.norm()
    assert layer.merge() is linear
    assert (linear.weight - weight).norm() <= tolerance * weight.norm()


def test_all_gradients_are_those_of_the_product_by_finite_differences():
    layer = spectral(enhanced=False)
    inputs = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    frozen = layer.all_left, layer.all_right, layer.active, False
    assert torch.autograd.gradcheck(
        lambda *trained: spectral_product(*trained, *frozen), (inputs, layer.left, layer.right, layer.values)
    )


@pytest.mark.parametrize("rank", [3, 7])
def test_enhanced_gradients_times_singular_values_are_those_of_autograd(rank):
    layer = spectral(rank)
    inputs = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 7, dtype=torch.float64)
    (layer(inputs) * weights).sum().backward()
    left, right = (vectors.clone().requires_grad_() for vectors in layer.vectors())
    values, plain_inputs = layer.values.detach().clone().requires_grad_(), inputs.detach().clone().requires_grad_()
    dense = (left.T * values) @ right
    (F.linear(plain_inputs, dense, layer.bias.detach()) * weights).sum().backward()
    size = layer.values[layer.active, None]
    pairs = [
        (layer.values.grad, values.grad),
        (inputs.grad, plain_inputs.grad),
        (layer.left.grad * size, left.grad[layer.active]),
        (layer.right.grad * size, right.grad[layer.active]),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_vectors_of_singular_value_zero_have_a_gradient():
    linear = plain()
    with torch.no_grad():
        linear.weight[:, 0] = 0
        linear.weight[1:] = 0
    layer = SpectralLinear(linear, 7, drawing())
    layer(torch.randn(5, 11, dtype=torch.float64)).square().sum().backward()
    assert (layer.values > 1e-9).sum() == 1
    assert torch.isfinite(layer.left.grad).all()
    assert (layer.right.grad.norm(dim=1) > 0).any()


@pytest.mark.parametrize("enhanced", [True, False])
def test_small_step_of_descent_changes_the_weight_by_the_sum_of_projected_terms(enhanced):
    """With G the gradient of the weight, each vector moves at right angles to itself and each value along u v^T."""
    layer, rate = spectral(7, enhanced), 1e-9
    inputs, target = torch.randn(20, 11, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    before, values = layer.matrix(), layer.values.detach().clone()
    left, right = layer.vectors()
    residual = F.linear(inputs, before, layer.bias.detach()) - target
    gradient = 2 * residual.T @ inputs
    train_step(layer, torch.optim.SGD(layer.parameters(), lr=rate), inputs, target)
    expected = torch.zeros_like(before)
    for u, v, value in zip(left, right, values, strict=True):
        factor = 1.0 if enhanced else value
        u_moves, v_moves = gradient @ v * factor, gradient.T @ u * factor
        u_moves, v_moves = u_moves - u * (u @ u_moves), v_moves - v * (v @ v_moves)
        expected -= value * (torch.outer(u_moves, v) + torch.outer(u, v_moves))
        expected -= (u @ gradient @ v) * torch.outer(u, v)
    assert ((layer.matrix() - before) / rate - expected).norm() < 1e-5 * expected.norm()


def test_over_an_iteration_other_vectors_stay_and_trained_ones_keep_their_length():
    layer = spectral()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    inputs, target = torch.randn(20, 11, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    before, active = layer.vectors(), layer.active.clone()
    for _ in range(20):
        train_step(layer, optimizer, inputs, target)
        for vectors in layer.vectors():
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7, dtype=torch.float64), atol=1e-6, rtol=0)
        assert (layer.values >= 0).all()
    assert (layer.values == 0).any()  # the rate is large enough to drive some there
    others = [index for index in range(7) if index not in active]
    for start, end in zip(before, layer.vectors(), strict=True):
        assert torch.equal(start[others], end[others])
        assert not (start[active] == end[active]).all(dim=1).any()


@pytest.mark.parametrize("new_round", [True, False])
def test_beginning_an_iteration_leaves_the_weight(new_round):
    layer = spectral()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    inputs, target = torch.randn(20, 11, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    for _ in range(10):
        train_step(layer, optimizer, inputs, target)
    before, active, computed = layer.matrix(), layer.active.clone(), layer(inputs)
    reset = layer.restart(drawing(1), new_round=new_round)
    assert {id(layer.left), id(layer.right)} <= {*map(id, reset)}
    assert any(parameter is layer.values for parameter in reset) == new_round
    assert not torch.equal(layer.active, active)
    torch.testing.assert_close(layer.matrix(), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(inputs), computed, rtol=0, atol=1e-12)
    if new_round:
        for vectors in layer.vectors():
            torch.testing.assert_close(vectors @ vectors.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (layer.values[:-1] >= layer.values[1:]).all()


def draws(layer, count):
    generator = drawing(5)
    for _ in range(count):
        layer._draw(generator)
        yield layer.active.tolist()


@given(rank=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_directions_of_a_draw_are_distinct(rank, seed):
    layer = SpectralLinear(plain(), rank, drawing(seed))
    assert len({*layer.active.tolist()}) == rank


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_directions_are_drawn_as_often_as_they_should(share):
    layer = spectral(1, share=share)
    values = layer.values.detach()
    expected = (1 - share) / 7 + share * values / values.sum()
    counted = torch.zeros(7)
    for (index,) in draws(layer, 3000):
        counted[index] += 1
    assert stats.chisquare(counted.numpy(), 3000 * expected.numpy() / expected.sum().item()).pvalue > 1e-3
    if share:
        uniform = stats.chisquare(counted.numpy())
        assert uniform.pvalue < 1e-6


def test_directions_of_a_zero_weight_are_drawn_evenly():
    layer = spectral()
    with torch.no_grad():
        layer.values.zero_()
    assert layer.probabilities().tolist() == pytest.approx([1 / 7] * 7)
    assert all(len({*drawn}) == 3 for drawn in draws(layer, 5))


@pytest.mark.parametrize(("out", "in_", "rank"), [(16, 16, 4), (24, 9, 9), (9, 24, 1)])
def test_optimiser_holds_two_moments_of_the_trained_numbers_alone(out, in_, rank):
    layer = SpectralLinear(plain(out=out, in_=in_, dtype=torch.float32), rank, drawing())
    layer.bias.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad])
    train_step(layer, optimizer, torch.randn(3, in_), torch.randn(3, out))
    moments = [
        value for state in optimizer.state.values() for name, value in state.items() if name.startswith("exp_avg")
    ]
    trained = rank * (out + in_) + min(out, in_)
    assert sum(moment.numel() * moment.element_size() for moment in moments) == 2 * 4 * trained
    lora = [(r * (out + in_)) / (out * in_) for r in (rank, rank + 1)]
    assert lora[0] < trained / (out * in_) < lora[1]  # between LoRA of this rank and of the next


def test_weights_of_half_precision_train_in_float32_and_come_back_in_half():
    linear = plain(dtype=torch.bfloat16, out=32, in_=48)
    inputs = torch.randn(4, 48, dtype=torch.bfloat16)
    expected = linear(inputs)
    layer = SpectralLinear(linear, 8, drawing())
    assert {p.dtype for p in (layer.left, layer.right, layer.values)} == {torch.float32}
    assert layer(inputs).dtype == torch.bfloat16
    torch.testing.assert_close(layer(inputs), expected, rtol=0.05, atol=0.3)
    assert torch.equal(layer.weight, layer.merge().weight)
    assert layer.merge().weight.dtype == torch.bfloat16


def test_autocast_computes_in_its_dtype_and_gradients_stay_float32():
    layer = spectral(dtype=torch.float32, out=32, in_=48, rank=8)
    inputs = torch.randn(16, 48)
    (layer(inputs).square().sum()).backward()
    exact = layer.left.grad.clone()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(inputs)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert layer.left.grad.dtype == torch.float32
    assert (layer.left.grad - exact).norm() < 0.02 * exact.norm()


def relative_error(matrix, target):
    return ((matrix - target).norm() / target.norm()).item()


def regression(width=24):
    """A target that differs from the initial weight by a matrix of full rank, and what rank can reach of it."""
    torch.manual_seed(0)
    start = torch.randn(width, width) / math.sqrt(width)
    difference = torch.randn(width, width) / math.sqrt(width)
    linear = nn.Linear(width, width, bias=False)
    with torch.no_grad():
        linear.weight.copy_(start)
    tail = torch.linalg.svdvals(difference)
    target = start + difference
    return linear, target, lambda rank: (tail[rank:].norm() / target.norm()).item()


@pytest.mark.parametrize(("method", "within"), [("lora", (1.0, 1.05)), ("relora", (0, 0.1)), ("sst", (0, 0.1))])
def test_only_methods_that_begin_anew_get_below_what_their_rank_can_reach(method, within):
    """The rest of the difference after its best approximation of that rank (Eckart and Young) bounds LoRA."""
    from perplab.training.low_rank import LowRankConfig, apply_low_rank

    linear, target, floor = regression()
    net = nn.Sequential(linear)
    config = LowRankConfig(method=method, rank=3, iteration_steps=40, iteration_warmup=5)
    training = apply_low_rank(net, config)
    optimizer = torch.optim.Adam(net.parameters())
    steps = 1600
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * training.rate_factor(step) * (1 - step / steps)
        inputs = torch.randn(64, 24)
        (net(inputs) - inputs @ target.T).square().mean().backward()
        training.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_update(step, optimizer)
    least, most = within
    assert least * floor(3) <= relative_error(net[0].matrix(), target) <= most * floor(3)
