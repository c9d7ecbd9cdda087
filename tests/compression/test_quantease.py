"""Coordinate descent: its moves, its sweeps and where it ends."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_references import (
    column_values,
    correlated_layer,
    exact,
    moments_of,
    naive_sweep,
    output_error,
    small_layers,
)

from perplab.compression.grid import AffineGrid
from perplab.compression.solvers import (
    AWQ,
    GPTQ,
    InputMoments,
    QuantEase,
    QuantEaseOutliers,
    RoundToNearest,
    SpQR,
    relative_error,
)
from perplab.compression.solvers.descent import copy_into, sweep
from perplab.compression.solvers.feedback import BLOCK, visiting_order
from perplab.compression.solvers.quantease_outliers import largest_eigenvalue
from perplab.errors import PerplabError

STARTS = [None, RoundToNearest(), GPTQ(), GPTQ(act_order=True), AWQ(), SpQR(damping=0.1)]


def positive_definite(moments):
    """The same inputs with a little noise of their own in each."""
    second = moments.second + 0.1 * torch.eye(len(moments.second), dtype=moments.second.dtype)
    return InputMoments(second, moments.mean_magnitude, moments.count)


@settings(max_examples=30)
@given(small_layers(out=(3, 3), inputs=(5, 5)))
def test_each_move_is_to_the_best_grid_value_for_the_error(layer):
    weight, moments = layer[0], positive_definite(layer[1])
    grid = AffineGrid.fit(weight, exact(bits=2))
    current = grid.project(weight).T.contiguous()
    before = current.T.clone()
    sweep(current, weight.T, moments.second, grid.column_rounder(torch.arange(5), weight.dtype).round_into)
    for column, row in itertools.product(range(5), range(3)):
        mixed = torch.cat([current.T[:, :column], before[:, column:]], dim=1)
        candidates = column_values(grid, column)[row]
        errors = []
        for candidate in candidates:
            mixed[row, column] = candidate
            errors.append(output_error(weight, mixed, moments.second))
        assert current[column, row] == candidates[torch.tensor(errors).argmin()]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("inputs", [1, 16, BLOCK, 2 * BLOCK + 48])
def test_blocked_sweeps_equal_sweeps_that_recompute_everything(inputs, group_size, act_order):
    group_size = group_size if inputs % 16 == 0 else None
    weight, moments = correlated_layer(7, inputs, seed=inputs)
    second = moments.second
    if inputs > 2:
        second[3], second[:, 3] = 0.0, 0.0
    grid = AffineGrid.fit(weight, exact(bits=3, group_size=group_size))
    order = visiting_order(second, act_order)
    rounder = grid.column_rounder(order, weight.dtype)
    ordered = second[order][:, order]
    current, expected = weight.T[order], weight.clone()
    for free in False, True, False, False:
        sweep(current, weight.T[order], ordered, copy_into if free else rounder.round_into)
        naive_sweep(expected, weight, second, grid, order, free)
        torch.testing.assert_close(current, expected.T[order])
    torch.testing.assert_close(grid.codes(current[order.argsort()].T), grid.codes(expected), rtol=0, atol=0)


@given(small_layers(), st.booleans())
def test_a_sweep_knows_what_it_gained(layer, free):
    weight, moments = layer
    grid = AffineGrid.fit(weight, exact(bits=2))
    current = grid.project(weight).T.contiguous()
    before = output_error(weight, current.T, moments.second)
    rounder = grid.column_rounder(torch.arange(weight.shape[1]), weight.dtype)
    gain, _ = sweep(current, weight.T, moments.second, copy_into if free else rounder.round_into)
    assert before - output_error(weight, current.T, moments.second) == pytest.approx(gain, abs=1e-9)


@settings(max_examples=40)
@given(small_layers(), st.sampled_from(STARTS), st.integers(1, 4), st.booleans())
def test_descent_from_a_grid_point_never_climbs(layer, start, bits, act_order):
    weight, moments = layer
    start = start or RoundToNearest()
    solver = QuantEase(start=start, free_every=0, sweeps=6, act_order=act_order)
    found = solver.solve(weight, moments, exact(bits=bits))
    begun = AffineGrid.fit(weight, exact(bits=bits)).project(start.solve(weight, moments, exact(bits=bits)).weight())
    errors = [relative_error(weight, begun, moments.second), *found.trace]
    assert all(later <= earlier * (1 + 1e-9) + 1e-12 for earlier, later in itertools.pairwise(errors))


@settings(max_examples=40)
@given(small_layers(), st.sampled_from(STARTS), st.integers(1, 4))
def test_the_answer_is_the_best_rounded_point_and_its_error_is_true(layer, start, bits):
    weight, moments = layer
    found = QuantEase(start=start, sweeps=8).solve(weight, moments, exact(bits=bits))
    true = relative_error(weight, found.weight(), moments.second)
    assert found.relative_error == pytest.approx(true, rel=1e-6, abs=1e-12)
    assert found.outliers is None
    if isinstance(start, RoundToNearest | GPTQ):
        assert true <= start.solve(weight, moments, exact(bits=bits)).relative_error * (1 + 1e-9) + 1e-12


@settings(max_examples=30)
@given(small_layers(out=(2, 2), inputs=(4, 4)))
def test_no_single_move_improves_the_end(layer):
    weight, moments = layer[0], positive_definite(layer[1])
    found = QuantEase(free_every=0, sweeps=100).solve(weight, moments, exact(bits=2))
    assert len(found.trace) < 100
    grid = AffineGrid.fit(weight, exact(bits=2))
    least = output_error(weight, found.weight(), moments.second)
    for row, column in itertools.product(range(2), range(4)):
        for value in column_values(grid, column)[row]:
            moved = found.weight()
            moved[row, column] = value
            assert output_error(weight, moved, moments.second) >= least * (1 - 1e-9)


def test_sweeps_without_rounding_lead_further():
    weight, moments = correlated_layer(32, 64, seed=1)
    stuck, freed = (QuantEase(free_every=every).solve(weight, moments, exact(bits=3)) for every in (0, 3))
    assert freed.relative_error < stuck.relative_error
    assert len(stuck.trace) < len(freed.trace) <= 31


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from(STARTS[:4]), st.integers(1, 4))
def test_inputs_that_share_nothing_leave_each_weight_at_its_nearest(seed, start, bits):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    magnitude = torch.rand(6, generator=generator, dtype=torch.float64)
    moments = InputMoments(magnitude.square().diag(), magnitude, 6)
    found = QuantEase(start=start, sweeps=5).solve(weight, moments, exact(bits=bits))
    assert torch.equal(found.matrix.codes, RoundToNearest().solve(weight, moments, exact(bits=bits)).matrix.codes)


@settings(max_examples=30)
@given(small_layers(), st.sampled_from([1e-6, 3.0, 1e6]))
def test_the_size_of_the_inputs_does_not_matter(layer, factor):
    weight, moments = layer[0], positive_definite(layer[1])
    larger = InputMoments(moments.second * factor, moments.mean_magnitude * factor**0.5, moments.count)
    for solver in QuantEase(sweeps=4), GPTQ(), SpQR():
        codes = [solver.solve(weight, each, exact(bits=3)).matrix.codes for each in (moments, larger)]
        assert torch.equal(*codes)


def test_reordered_inputs_give_the_reordered_answer():
    weight, moments = correlated_layer(5, 24)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    turned = InputMoments(moments.second[shuffled][:, shuffled], moments.mean_magnitude[shuffled], moments.count)
    solver = QuantEase(act_order=True, sweeps=8)
    straight = solver.solve(weight, moments, exact(bits=3)).matrix.codes
    assert torch.equal(solver.solve(weight[:, shuffled], turned, exact(bits=3)).matrix.codes, straight[:, shuffled])


def test_float32_finds_as_good_a_point_as_float64():
    weight, moments = correlated_layer(48, 160)
    for solver in QuantEase(), QuantEase(start=GPTQ()), QuantEaseOutliers():
        wide = solver.solve(weight, moments, exact(bits=3))
        narrow = solver.solve(weight.float(), moments, exact(bits=3))
        assert narrow.relative_error == pytest.approx(wide.relative_error, rel=0.02)
        true = relative_error(weight, narrow.weight().double(), moments.second)
        assert narrow.relative_error == pytest.approx(true, rel=1e-3)


@settings(max_examples=40)
@given(small_layers(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans(), st.integers(2, 3))
def test_outliers_keep_to_their_number_and_the_rest_keeps_to_the_grid(layer, share, columns, bits):
    weight, moments = layer
    found = QuantEaseOutliers(share=share, columns=columns, sweeps=6).solve(weight, moments, exact(bits=bits))
    kept = found.outliers.to_dense() != 0
    if columns:
        assert kept.any(dim=0).sum() <= round(share * weight.shape[1])
    else:
        assert kept.sum() <= round(share * weight.numel())
    assert all(len(row.unique()) <= 2**bits for row in found.matrix.dequantized())
    true = relative_error(weight, found.weight(), moments.second)
    assert found.relative_error == pytest.approx(true, rel=1e-6, abs=1e-12)


@settings(max_examples=40)
@given(small_layers(inputs=(2, 9)), st.sampled_from([0.1, 0.3]), st.sampled_from([0.5, 1.0]))
def test_outlier_steps_never_make_the_error_grow_on_a_fixed_grid(layer, share, step):
    weight, moments = layer
    found = QuantEaseOutliers(share=share, step=step, free_every=0, sweeps=8).solve(weight, moments, exact(bits=2))
    assert all(later <= earlier * (1 + 1e-9) + 1e-12 for earlier, later in itertools.pairwise(found.trace))


@settings(max_examples=30)
@given(small_layers(), st.booleans())
def test_no_outliers_is_plain_descent(layer, columns):
    weight, moments = layer
    plain = QuantEase(sweeps=6).solve(weight, moments, exact(bits=3))
    without = QuantEaseOutliers(share=0.0, columns=columns, sweeps=6).solve(weight, moments, exact(bits=3))
    assert without.outliers._nnz() == 0
    assert without.relative_error == pytest.approx(plain.relative_error, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("columns", [False, True])
def test_all_weights_as_outliers_leave_no_error(columns):
    weight, moments = correlated_layer(4, 12)
    solver = QuantEaseOutliers(share=1.0, columns=columns, sweeps=3)
    assert solver.solve(weight, moments, exact(bits=2)).relative_error < 1e-12


@pytest.mark.parametrize("columns", [False, True])
def test_large_weights_that_stay_free_the_grid_from_them(columns):
    weight, moments = correlated_layer(32, 64)
    if columns:
        weight[:, 5] *= 10
    else:
        weight[torch.arange(0, 32, 2), torch.arange(0, 64, 4)] *= 10
    plain = QuantEase().solve(weight, moments, exact(bits=3))
    kept = QuantEaseOutliers(share=0.03, columns=columns).solve(weight, moments, exact(bits=3))
    assert kept.relative_error < 0.3 * plain.relative_error


@given(small_layers(inputs=(1, 12)))
def test_the_step_is_short_enough_for_the_largest_eigenvalue(layer):
    second = layer[1].second
    largest = torch.linalg.eigvalsh(second)[-1].item()
    assert largest * (1 - 1e-12) <= largest_eigenvalue(second) <= 1.06 * largest + 1e-12


def test_inputs_that_are_all_zero_leave_each_weight_at_its_nearest():
    weight, _ = correlated_layer(3, 8)
    moments = moments_of(torch.zeros(8, 4, dtype=torch.float64))
    for solver in QuantEase(sweeps=3), QuantEaseOutliers(share=0.0, sweeps=3), GPTQ(), AWQ():
        found = solver.solve(weight, moments, exact(bits=3))
        assert torch.equal(found.matrix.codes, AffineGrid.fit(weight, exact(bits=3)).codes(weight))
        assert found.relative_error == 0


@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        (QuantEase, {"sweeps": 0}),
        (QuantEase, {"free_every": 1}),
        (QuantEaseOutliers, {"share": 1.5}),
        (QuantEaseOutliers, {"step": 0.0}),
        (QuantEaseOutliers, {"sweeps": 0}),
    ],
)
def test_settings_of_descent_that_cannot_be_meant_are_refused(solver, settings):
    with pytest.raises(PerplabError):
        solver(**settings)
