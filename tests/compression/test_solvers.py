"""What holds for every solver, and what is particular to GPTQ, AWQ, SpQR and LLM.int8()."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_references import correlated_layer, exact, moments_of, small_layers, textbook_gptq

from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers import (
    AWQ,
    GPTQ,
    SOLVERS,
    InputMoments,
    LLMInt8,
    QuantEase,
    RoundToNearest,
    SpQR,
    relative_error,
)
from perplab.compression.solvers.awq import input_scale
from perplab.compression.solvers.feedback import BLOCK, visiting_order
from perplab.errors import PerplabError

NAMES = st.sampled_from([name for name in SOLVERS if name != "llm-int8"])


@settings(max_examples=60)
@given(small_layers(), NAMES, st.integers(1, 8), st.booleans())
def test_every_solution_is_finite_on_its_grid_and_tells_its_true_error(layer, name, bits, symmetric):
    weight, moments = layer
    found = SOLVERS[name]().solve(weight, moments, exact(bits=bits, symmetric=symmetric))
    assert found.matrix.codes.dtype == torch.uint8
    assert found.matrix.codes.shape == weight.shape
    assert int(found.matrix.codes.max()) < 2**bits
    assert found.weight().isfinite().all()
    true = relative_error(weight, found.weight(), moments.second)
    assert found.relative_error == pytest.approx(true, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "llm-int8"])
def test_four_more_bits_divide_the_error_by_more_than_a_hundred(name):
    weight, moments = correlated_layer(16, 48)
    few, many = (SOLVERS[name]().solve(weight, moments, exact(bits=bits)).relative_error for bits in (4, 8))
    assert many < few / 100


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("llm-int8", "awq", "spqr")])
def test_weights_already_on_the_grid_are_returned(name):
    codes = torch.stack([torch.arange(8).roll(row).repeat(3) for row in range(4)])
    weight = (codes.double() - 3) / 4
    _, moments = correlated_layer(4, 24)
    found = SOLVERS[name](**({"share": 0.0} if name == "quantease-outliers" else {})).solve(
        weight, moments, exact(bits=3)
    )
    torch.testing.assert_close(found.weight(), weight, rtol=0, atol=0)
    assert found.relative_error == 0


@pytest.mark.parametrize("name", SOLVERS)
def test_one_token_repeated_is_solved(name):
    weight, _ = correlated_layer(4, 16)
    moments = moments_of(torch.linspace(-1, 2, 16, dtype=torch.float64).unsqueeze(1).expand(16, 40))
    found = SOLVERS[name]().solve(weight, moments, exact(bits=8 if name == "llm-int8" else 3))
    assert found.weight().isfinite().all()
    assert found.relative_error < 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_half_precision_scales_are_what_the_solver_saw(name):
    weight, moments = correlated_layer(8, 32, dtype=torch.float32)
    options = GridOptions(bits=8 if name == "llm-int8" else 4, scale_dtype=torch.bfloat16)
    found = SOLVERS[name]().solve(weight, moments, options)
    assert found.matrix.scale.dtype == torch.bfloat16
    assert found.outliers is None or found.outliers.dtype == torch.bfloat16
    true = relative_error(weight, found.weight(), moments.second)
    assert found.relative_error == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_leaves_what_it_is_given_as_it_was(name):
    weight, moments = correlated_layer(4, 16)
    before = weight.clone(), moments.second.clone(), moments.mean_magnitude.clone()
    SOLVERS[name]().solve(weight, moments, exact(bits=8))
    assert all(map(torch.equal, before, (weight, moments.second, moments.mean_magnitude)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("part", ["weight", "second", "magnitude", "shape"])
def test_what_is_not_finite_or_does_not_fit_is_refused(name, part):
    weight, moments = correlated_layer(4, 16)
    if part == "weight":
        weight[2, 3] = torch.nan
    elif part == "second":
        moments.second[2, 3] = torch.inf
    elif part == "magnitude":
        moments.mean_magnitude[5] = torch.nan
    else:
        moments = InputMoments(torch.eye(8), torch.ones(8), 8)
    with pytest.raises(PerplabError):
        SOLVERS[name]().solve(weight, moments, exact(bits=8))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("inputs", [1, 16, BLOCK, 2 * BLOCK + 48])
def test_gptq_without_an_inverse_is_gptq_as_published(inputs, group_size, act_order):
    group_size = group_size if inputs % 16 == 0 else None
    weight, moments = correlated_layer(9, inputs, seed=inputs)
    options = exact(bits=3, group_size=group_size)
    grid = AffineGrid.fit(weight, options)
    order = visiting_order(moments.second, act_order)
    expected = textbook_gptq(weight, moments.second, grid, order)
    found = GPTQ(act_order=act_order).solve(weight, moments, options)
    assert torch.equal(found.matrix.codes, grid.codes(expected))


def test_gptq_beats_rounding_and_few_groups_beat_one():
    weight, moments = correlated_layer(32, 64)
    for solver in GPTQ(), GPTQ(act_order=True), QuantEase():
        whole, grouped = (
            solver.solve(weight, moments, exact(bits=3, group_size=size)).relative_error for size in (None, 16)
        )
        assert grouped < whole
        assert whole < 0.5 * RoundToNearest().solve(weight, moments, exact(bits=3)).relative_error


def test_gptq_rounds_the_weights_of_inputs_that_are_always_zero():
    weight, moments = correlated_layer(6, 20)
    dead = torch.tensor([0, 7, 19])
    moments.second[dead], moments.second[:, dead] = 0.0, 0.0
    found = GPTQ(act_order=True).solve(weight, moments, exact(bits=3))
    nearest = AffineGrid.fit(weight, exact(bits=3)).codes(weight)
    assert torch.equal(found.matrix.codes[:, dead], nearest[:, dead])
    assert not torch.equal(found.matrix.codes, nearest)


def test_a_singular_second_moment_without_damping_is_refused():
    weight, _ = correlated_layer(4, 16)
    moments = moments_of(torch.eye(16, 3, dtype=torch.float64))
    with pytest.raises(PerplabError, match="larger damping"):
        GPTQ(damping=0.0).solve(weight, moments, exact(bits=3))


@settings(max_examples=30)
@given(small_layers(), st.booleans())
def test_awq_is_never_worse_than_rounding(layer, clip):
    weight, moments = layer
    found = AWQ(clip=clip).solve(weight, moments, exact(bits=3))
    nearest = RoundToNearest().solve(weight, moments, exact(bits=3)).relative_error
    assert found.relative_error <= nearest * (1 + 1e-9) + 1e-15


def test_awq_protects_the_columns_of_large_inputs():
    weight, moments = correlated_layer(16, 32)
    size = torch.ones(32, dtype=torch.float64)
    size[4] = 50.0
    loud = InputMoments(size.outer(size) * moments.second, size * moments.mean_magnitude, moments.count)
    found = AWQ().solve(weight, loud, exact(bits=3))
    assert found.input_scale.argmax() == 4
    assert found.relative_error < 0.5 * RoundToNearest().solve(weight, loud, exact(bits=3)).relative_error
    scaled = found.weight() * found.input_scale
    torch.testing.assert_close(scaled, found.matrix.dequantized())


def test_awq_scales_of_equal_inputs_are_one():
    torch.testing.assert_close(input_scale(torch.full((5,), 3.0), 0.7), torch.ones(5))
    torch.testing.assert_close(input_scale(torch.tensor([1.0, 4.0]), 0.5), torch.tensor([0.5, 2.0]).sqrt())
    assert input_scale(torch.zeros(3), 0.5).isfinite().all()


def test_awq_clips_each_group_by_its_own_inputs():
    weight, moments = correlated_layer(6, 32)
    options = exact(bits=3, group_size=8)
    separate = moments.second * torch.block_diag(*[torch.ones(8, 8, dtype=torch.float64)] * 4)
    blocks = InputMoments(separate, moments.mean_magnitude, moments.count)
    whole = AWQ(exponents=1, clip=True).solve(weight, blocks, options).weight()
    for start in range(0, 32, 8):
        part = slice(start, start + 8)
        alone = InputMoments(separate[part, part], moments.mean_magnitude[part], moments.count)
        expected = AWQ(exponents=1, clip=True).solve(weight[:, part], alone, options)
        torch.testing.assert_close(whole[:, part], expected.weight())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("threshold", [0.01, 0.1, 1e9])
def test_spqr_is_gptq_whose_costly_weights_make_no_error(threshold, act_order):
    weight, moments = correlated_layer(16, 48)
    options = exact(bits=3, group_size=16)
    solver = SpQR(threshold=threshold, act_order=act_order, statistics_bits=40, leave_one_out=False)
    found = solver.solve(weight, moments, options)
    grid, order = AffineGrid.fit(weight, options), visiting_order(moments.second, act_order)
    expected = textbook_gptq(weight, moments.second, grid, order, threshold=threshold)
    torch.testing.assert_close(found.weight(), expected)
    kept = found.outliers.to_dense() != 0
    assert kept.any() == (threshold < 1)
    assert not kept.all()


def test_spqr_with_threshold_zero_keeps_every_weight():
    weight, moments = correlated_layer(16, 32)
    found = SpQR(threshold=0.0).solve(weight, moments, exact(bits=2, group_size=16))
    torch.testing.assert_close(found.weight(), weight)


def test_spqr_keeps_the_weights_that_rounding_would_hurt_most():
    weight, moments = correlated_layer(32, 64)
    weight[3, 7], weight[20, 40] = 15.0, -15.0
    found = SpQR(threshold=1.0).solve(weight, moments, exact(bits=3, group_size=16))
    kept = found.outliers.to_dense() != 0
    assert kept[3, 7]
    assert kept[20, 40]
    assert kept.double().mean() < 0.02
    assert torch.all(found.matrix.dequantized()[kept] == 0)
    without = SpQR(threshold=1e9).solve(weight, moments, exact(bits=3, group_size=16))
    assert found.relative_error < 0.8 * without.relative_error


def test_a_grid_that_leaves_one_out_is_finer():
    weight, moments = correlated_layer(32, 64)
    weight[::3, ::9] *= 8
    errors = [
        SpQR(threshold=0.5, leave_one_out=out).solve(weight, moments, exact(bits=3, group_size=16)).relative_error
        for out in (False, True)
    ]
    assert errors[1] < errors[0]


def test_spqr_has_few_scales_in_each_run_of_rows():
    weight, moments = correlated_layer(40, 32)
    matrix = SpQR().solve(weight, moments, exact(bits=4, group_size=16)).matrix
    for run in matrix.scale.split(16):
        assert all(len(group.unique()) <= 8 for group in run.T)
        assert torch.all(run > 0)


def test_a_row_of_zeros_does_not_coarsen_the_scales_beside_it():
    weight, moments = correlated_layer(16, 32)
    weight[5] = weight[6]
    solver, options = SpQR(leave_one_out=False), exact(bits=3, group_size=16)
    full = solver.solve(weight, moments, options).matrix
    weight[5] = 0.0
    pruned = solver.solve(weight, moments, options)
    others = torch.arange(16) != 5
    torch.testing.assert_close(pruned.matrix.scale[others], full.scale[others])
    assert not pruned.weight()[5].any()


def test_llm_int8_puts_each_rows_largest_magnitude_at_code_127():
    weight, moments = correlated_layer(6, 32)
    weight[2] = 0.0
    found = LLMInt8().solve(weight, moments, exact(bits=8))
    steps = found.matrix.codes.long() - found.matrix.zero.long()
    assert torch.all(found.matrix.zero == 128)
    largest = steps.abs().amax(1)
    assert torch.all(largest[weight.any(dim=1)] == 127)
    assert not steps[2].any()
    expected = weight.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(found.matrix.scale[weight.any(dim=1)], expected[weight.any(dim=1)])


def test_llm_int8_has_no_other_grid():
    weight, moments = correlated_layer(6, 32)
    for options in exact(bits=4), exact(bits=8, group_size=16), replace(exact(bits=8), per_tensor=True):
        with pytest.raises(PerplabError, match="8 bits and a scale a row"):
            LLMInt8().solve(weight, moments, options)


@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        (GPTQ, {"damping": -0.1}),
        (AWQ, {"exponents": 0}),
        (SpQR, {"threshold": -1.0}),
        (SpQR, {"damping": -1.0}),
        (SpQR, {"statistics_bits": 0}),
    ],
)
def test_settings_of_solvers_that_cannot_be_meant_are_refused(solver, settings):
    with pytest.raises(PerplabError):
        solver(**settings)


def test_clipping_by_group_needs_groups():
    weight, moments = correlated_layer(6, 32)
    with pytest.raises(PerplabError, match="clip"):
        AWQ(clip=True).solve(weight, moments, exact(bits=4, per_tensor=True))
