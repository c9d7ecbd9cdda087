from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perplab.compression.grid import ERROR_NORM, SHRINKS, AffineGrid, GridOptions
from perplab.errors import PerplabError

BITS = st.integers(1, 8)
RANGES = st.sampled_from(["minmax", "percentile", "mse"])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@st.composite
def weights(draw):
    """Weights of a few rows and groups, some groups of zeros or of one value, at many sizes."""
    rows, groups, size = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 8))
    weight = normal(rows, groups, size, seed=draw(st.integers(0, 2**32)))
    weight[0] *= draw(st.sampled_from([0.0, 1e-3, 1.0]))
    weight[-1, -1] = draw(st.sampled_from([0.0, -0.5, 3.0]))
    return weight.view(rows, -1) * draw(st.sampled_from([1e-6, 1.0, 1e3])), size


@given(weights(), BITS, RANGES, st.booleans(), DTYPES)
def test_projecting_goes_to_the_nearest_grid_value_and_stays_there(weight_and_size, bits, rule, symmetric, dtype):
    weight, size = weight_and_size[0].double(), weight_and_size[1]
    options = GridOptions(bits=bits, group_size=size, range=rule, symmetric=symmetric, scale_dtype=dtype)
    grid = AffineGrid.fit(weight, options)
    projected = grid.project(weight)
    scale = grid.scale.repeat_interleave(size, 1).double()
    zero = grid.zero.repeat_interleave(size, 1).long()
    values = (torch.arange(2**bits).view(-1, 1, 1) - zero) * scale
    distance = (values - weight).abs().amin(0)
    torch.testing.assert_close((projected - weight).abs(), distance, rtol=1e-9, atol=0)
    torch.testing.assert_close(grid.project(projected), projected, rtol=0, atol=0)
    torch.testing.assert_close(grid.codes(projected), grid.codes(weight), rtol=0, atol=0)


@given(weights(), BITS, st.booleans(), DTYPES)
def test_codes_spread_out_as_a_quantized_matrix_are_the_projection(weight_and_size, bits, symmetric, dtype):
    weight, size = weight_and_size
    options = GridOptions(bits=bits, group_size=size, symmetric=symmetric, scale_dtype=dtype)
    grid = AffineGrid.fit(weight, options)
    matrix = grid.quantized(grid.codes(weight))
    assert matrix.scale.dtype == dtype
    assert matrix.group_size == size
    torch.testing.assert_close(matrix.dequantized(), grid.project(weight).to(dtype), rtol=1e-6, atol=0)


@given(weights(), BITS, st.booleans(), RANGES)
def test_zero_is_on_every_grid(weight_and_size, bits, symmetric, rule):
    weight, size = weight_and_size
    grid = AffineGrid.fit(weight, GridOptions(bits=bits, group_size=size, symmetric=symmetric, range=rule))
    assert not grid.project(torch.zeros_like(weight)).any()


@given(weights(), st.integers(2, 8))
def test_no_weight_is_further_than_half_a_step_from_a_full_range_grid(weight_and_size, bits):
    weight, size = weight_and_size
    grid = AffineGrid.fit(weight.double(), GridOptions(bits=bits, group_size=size, scale_dtype=torch.float64))
    step = grid.scale.repeat_interleave(size, 1)
    assert torch.all((grid.project(weight.double()) - weight).abs() <= step * (0.5 + 1e-9))


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_that_fill_a_grid_are_kept_exactly(bits):
    codes = torch.stack([torch.arange(2**bits).roll(row) for row in range(3)])
    zero = torch.tensor([[0], [2 ** (bits - 1)], [2**bits - 1]])
    weight = (codes - zero) * torch.tensor([[0.25], [2.0], [0.5]])
    grid = AffineGrid.fit(weight, GridOptions(bits=bits))
    torch.testing.assert_close(grid.codes(weight).long(), codes)
    torch.testing.assert_close(grid.project(weight), weight, rtol=0, atol=0)


def test_symmetric_grids_have_the_middle_code_for_zero_and_span_the_largest_magnitude():
    weight = normal(4, 32)
    grid = AffineGrid.fit(weight, GridOptions(bits=4, symmetric=True))
    assert torch.all(grid.zero == 8)
    torch.testing.assert_close(grid.scale, 2 * weight.abs().amax(1, keepdim=True) / 15)


def test_a_row_of_positive_weights_is_covered_by_a_symmetric_grid():
    weight = torch.linspace(0.1, 1, 16).unsqueeze(0)
    grid = AffineGrid.fit(weight, GridOptions(bits=8, symmetric=True))
    assert (grid.project(weight) - weight).abs().max() <= grid.scale


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_searched_range_is_the_best_of_those_tried(symmetric):
    weight = normal(6, 16, dtype=torch.float64)
    options = GridOptions(bits=3, symmetric=symmetric, scale_dtype=torch.float64)

    def size_of_error(grid):
        return (grid.project(weight) - weight).abs().pow(ERROR_NORM).sum(1)

    tried = []
    for shrink in SHRINKS:
        low, high = (shrink * end.unsqueeze(1) for end in weight.aminmax(dim=1))
        tried.append(size_of_error(AffineGrid.fit(torch.maximum(torch.minimum(weight, high), low), options)))
    found = size_of_error(AffineGrid.fit(weight, replace(options, range="mse")))
    torch.testing.assert_close(found, torch.stack(tried).amin(0))
    assert torch.any(found < tried[0])


def test_a_percentile_range_leaves_out_the_ends():
    weight = torch.arange(-50.0, 50.0).unsqueeze(0)
    grid = AffineGrid.fit(weight, GridOptions(bits=8, range="percentile", percentile=90, scale_dtype=torch.float64))
    assert grid.project(weight).min() == pytest.approx(-45, abs=0.4)
    assert grid.project(weight).max() == pytest.approx(44, abs=0.4)


def test_one_scale_for_a_tensor_is_that_of_its_extremes():
    weight = normal(5, 12)
    grid = AffineGrid.fit(weight, GridOptions(bits=5, per_tensor=True))
    assert grid.scale.shape == (5, 1)
    torch.testing.assert_close(grid.scale, ((weight.max() - weight.min()) / 31).expand(5, 1))
    as_one_row = AffineGrid.fit(weight.view(1, -1), GridOptions(bits=5))
    torch.testing.assert_close(grid.project(weight), as_one_row.project(weight.view(1, -1)).view_as(weight))


@given(weights(), BITS, DTYPES)
def test_rounding_column_by_column_is_rounding_all_at_once(weight_and_size, bits, dtype):
    weight, size = weight_and_size
    grid = AffineGrid.fit(weight, GridOptions(bits=bits, group_size=size, scale_dtype=dtype))
    order = torch.arange(weight.shape[1]).flip(0)
    rounder = grid.column_rounder(order, weight.dtype)
    rounded = torch.empty_like(weight)
    for visit, column in enumerate(order.tolist()):
        destination = torch.empty(len(weight))
        rounder.round_into(destination, 1.3 * weight[:, column], visit)
        rounded[:, column] = destination
    torch.testing.assert_close(rounded, grid.project(1.3 * weight), rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(value):
    weight = normal(3, 4)
    weight[1, 2] = value
    with pytest.raises(PerplabError, match="row 1, column 2"):
        AffineGrid.fit(weight, GridOptions())


def test_groups_that_do_not_divide_the_columns_are_refused():
    with pytest.raises(PerplabError, match="group_size 5 does not divide the weight's 12 columns"):
        AffineGrid.fit(normal(2, 12), GridOptions(group_size=5))


def test_weights_too_large_for_their_scales_are_refused():
    with pytest.raises(PerplabError, match="float16"):
        AffineGrid.fit(normal(2, 12) * 1e8, GridOptions(bits=2, scale_dtype=torch.float16))


@pytest.mark.parametrize(
    "options",
    [{"bits": 0}, {"bits": 9}, {"group_size": 0}, {"percentile": 101}, {"per_tensor": True, "group_size": 8}],
)
def test_options_that_cannot_be_meant_are_refused(options):
    with pytest.raises(PerplabError):
        GridOptions(**options)
