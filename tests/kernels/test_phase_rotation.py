import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perplab.kernels import phase_rotation, phase_rotation_reference

HEADS, PAIRS = 3, 4


def random_inputs(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, HEADS, 5, 2 * PAIRS, generator=generator, dtype=dtype)
    delta, bias = (torch.randn(HEADS, 1, PAIRS, generator=generator, dtype=dtype) for _ in range(2))
    return states, delta, bias


def gradients(function, *inputs):
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    turned = function(*leaves)
    weights = torch.randn(turned.shape, generator=torch.Generator().manual_seed(1), dtype=turned.dtype)
    (turned * weights).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_the_definition(dtype, tolerance, seed):
    inputs = random_inputs(seed, dtype)
    torch.testing.assert_close(
        phase_rotation(*inputs), phase_rotation_reference(*inputs), rtol=tolerance, atol=tolerance
    )
    ours, theirs = (gradients(function, *inputs) for function in (phase_rotation, phase_rotation_reference))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=50 * tolerance, atol=50 * tolerance)


def test_gradients_agree_with_finite_differences_away_from_the_cut():
    angles = torch.linspace(-2.9, 2.9, HEADS * PAIRS, dtype=torch.float64).view(1, HEADS, 1, PAIRS)
    states = torch.cat((angles.cos(), angles.sin()), dim=-1) * 1.5
    _, delta, bias = random_inputs()
    assert torch.autograd.gradcheck(phase_rotation, [value.requires_grad_() for value in (states, delta, bias)])


def test_factor_and_angle_may_be_shared_by_pairs_or_by_all():
    states, delta, bias = random_inputs()
    for shape in ((HEADS, 1, 1), (1, 1, 1), (1, 1, PAIRS)):
        small = [value[: shape[0], :, : shape[2]] for value in (delta, bias)]
        spread = [value.expand(HEADS, 1, PAIRS) for value in small]
        torch.testing.assert_close(phase_rotation(states, *small), phase_rotation(states, *spread), rtol=0, atol=0)
        _, *ours = gradients(phase_rotation, states, *small)
        _, *theirs = gradients(phase_rotation_reference, states, *small)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_factor_one_without_an_angle_changes_no_bit(dtype):
    states, delta, _ = random_inputs(dtype=dtype)
    states[0, 0, 0] = 0
    assert torch.equal(phase_rotation(states, torch.ones_like(delta)), states)


@pytest.mark.parametrize("factor", [2.0, 3.0, -1.0])
def test_a_whole_factor_is_a_power_of_the_unit_phase(factor):
    states, delta, _ = random_inputs()
    first, second = states.chunk(2, dim=-1)
    number = torch.complex(first, second)
    expected = number.abs() * (number / number.abs()) ** factor
    turned = phase_rotation(states, torch.full_like(delta, factor))
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**31))
def test_magnitudes_are_kept(seed):
    states, delta, bias = random_inputs(seed)
    turned = phase_rotation(states, delta, bias)
    lengths = [torch.hypot(*value.chunk(2, dim=-1)) for value in (states, turned)]
    torch.testing.assert_close(*lengths, rtol=1e-12, atol=1e-12)


def test_factor_zero_leaves_nothing_but_magnitude_and_angle():
    states, delta, bias = random_inputs()
    first, second = states.chunk(2, dim=-1)
    turned_before = torch.cat((-second, first), dim=-1)  # every pair by a quarter
    zero = torch.zeros_like(delta)
    torch.testing.assert_close(phase_rotation(states, zero, bias), phase_rotation(turned_before, zero, bias))


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-23, 1e-19, 1e-12, 1e-6])
def test_gradients_are_finite_and_of_the_incoming_size_at_and_near_zero(size):
    angles = torch.linspace(-3.0, 3.0, HEADS * PAIRS).view(1, HEADS, 1, PAIRS)
    states = torch.cat((angles.cos(), angles.sin()), dim=-1) * size
    _, delta, bias = random_inputs(dtype=torch.float32)
    grads = gradients(phase_rotation, states, delta, bias)
    for grad in grads:
        assert torch.isfinite(grad).all()
    assert grads[0].abs().max() < 50
    assert grads[0].abs().max() > 0.1


def test_near_zero_the_gradient_is_that_of_the_same_direction_at_length_one():
    states, delta, bias = random_inputs(dtype=torch.float32)
    unit = gradients(phase_rotation, states, delta, bias)[0]
    small = gradients(phase_rotation, states * 1e-12, delta, bias)[0]
    torch.testing.assert_close(small, unit, rtol=1e-4, atol=1e-4)


def test_the_jump_at_the_cut_is_as_large_as_the_formula_says():
    above, below = (torch.tensor([[-1.0, side * 1e-9]], dtype=torch.float64) for side in (1, -1))
    for delta in (0.5, 0.3, 1.0, 2.0):
        factor = torch.tensor([[delta]], dtype=torch.float64)
        jump = (phase_rotation(above, factor) - phase_rotation(below, factor)).norm()
        assert math.isclose(jump, 2 * abs(math.sin(math.pi * delta)), abs_tol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_states_are_turned_by_float32_angles(dtype):
    states, delta, bias = random_inputs(dtype=torch.float32)
    states = states.to(dtype)
    expected = phase_rotation(states.float(), 40 * delta, bias).to(dtype)
    turned = phase_rotation(states, 40 * delta, bias)
    assert turned.dtype == dtype
    assert torch.equal(turned, expected)
    assert gradients(phase_rotation, states, delta, bias)[0].dtype == dtype


def test_a_layout_other_than_contiguous_makes_no_difference():
    states, delta, bias = random_inputs()
    turned_layout = states.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(phase_rotation(turned_layout, delta, bias), phase_rotation(states, delta, bias))
    empty = states[:, :, :0]
    assert phase_rotation(empty, delta, bias).shape == empty.shape


def test_traced_for_compilation_in_one_graph_it_is_the_same():
    inputs = random_inputs(dtype=torch.float32)
    compiled = torch.compile(phase_rotation, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), phase_rotation(*inputs))
    for one, other in zip(gradients(compiled, *inputs), gradients(phase_rotation, *inputs), strict=True):
        torch.testing.assert_close(one, other)
