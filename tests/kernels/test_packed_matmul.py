import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.kernels import packed_matmul as module
from perplab.kernels.packed_matmul import kernel_tables, pack, packed_matmul, reference_matmul
from perplab.kernels.quantized_matrix import QuantizedMatrix

BITS = range(1, 9)
SHAPES = [  # out, groups, group size
    (64, 4, 32),
    (128, 1, 128),
    (96, 2, 64),
    (70, 1, 96),
    (17, 3, 16),
    (5, 2, 15),
    (1, 1, 256),
    (200, 1, 1024),
]
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-20}  # of a sum of up to 1,024 terms, to their sizes' sum
needs_kernel = pytest.mark.skipif(module._kernel_block() is None, reason="torch has no int4 kernel on this processor")


def random_matrix(bits, out, groups, group_size, *, symmetric=False, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, groups * group_size), dtype=torch.uint8, generator=generator)
    zero = torch.randint(0, 2**bits, (out, groups), dtype=torch.uint8, generator=generator)
    if symmetric:
        zero.fill_(2 ** (bits - 1))
    scale = torch.rand(out, groups, generator=generator) + 0.1
    return QuantizedMatrix(codes, scale.to(dtype), zero, bits)


def random_input(rows, matrix, seed=1):
    shape = (rows, matrix.codes.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(matrix.scale.dtype)


def assert_within_rounding(product, x, matrix):
    """Each entry is the exact one, but for the rounding of its terms."""
    weight = matrix.dequantized().double()
    exact, size = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    assert ((product.double() - exact).abs() <= ROUNDING[product.dtype] * size + 1e-30).all()


@settings(max_examples=100)
@given(
    bits=st.integers(1, 8),
    out=st.integers(1, 130),
    groups=st.integers(1, 4),
    group_size=st.integers(1, 70),
    symmetric=st.booleans(),
    seed=st.integers(0, 9),
)
def test_unpacking_gives_back_what_was_packed(bits, out, groups, group_size, symmetric, seed):
    matrix = random_matrix(bits, out, groups, group_size, symmetric=symmetric, seed=seed)
    back = pack(matrix).unpacked()
    assert back.bits == bits
    for part in ("codes", "scale", "zero"):
        assert torch.equal(getattr(back, part), getattr(matrix, part))


@pytest.mark.parametrize("rows", [1, 3, 130])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_product_is_that_of_the_matrix(bits, symmetric, dtype, rows):
    for shape in SHAPES:
        matrix = random_matrix(bits, *shape, symmetric=symmetric, dtype=dtype)
        x = random_input(rows, matrix)
        packed = pack(matrix)
        assert_within_rounding(packed_matmul(x, packed), x, matrix)
        assert_within_rounding(reference_matmul(x, packed), x, matrix)


@pytest.mark.parametrize("bits", BITS)
def test_product_of_unit_vectors_is_the_matrix_itself(bits):
    """Every column in turn, through the spreading path: the numbers are those of `dequantized`, bit for bit."""
    for symmetric in (True, False):
        matrix = random_matrix(bits, 70, 3, 16, symmetric=symmetric)
        columns = packed_matmul(torch.eye(48), pack(matrix))
        assert torch.equal(columns.T, matrix.dequantized())


@needs_kernel
@pytest.mark.parametrize("bits", BITS)
def test_kernel_and_spreading_agree(bits, monkeypatch):
    matrix = random_matrix(bits, 192, 2, 128, dtype=torch.bfloat16)
    packed, x = pack(matrix), random_input(4, matrix)
    assert packed.tables is not None
    by_kernel = packed_matmul(x, packed)
    monkeypatch.setattr(module, "_KERNEL_ROWS", 0)
    spread = packed_matmul(x, packed)
    size = x.double().abs() @ matrix.dequantized().double().abs().T
    assert ((by_kernel.double() - spread.double()).abs() <= 2 * ROUNDING[torch.bfloat16] * size).all()


@pytest.mark.parametrize("part_bytes", [1, 40_000, 2**30])
def test_product_does_not_depend_on_the_size_of_the_parts(part_bytes, monkeypatch):
    matrix = random_matrix(4, 300, 2, 64)
    packed, x = pack(matrix), random_input(9, matrix)
    monkeypatch.setattr(module, "_PART_BYTES", part_bytes)
    torch.testing.assert_close(packed_matmul(x, packed), x @ matrix.dequantized().T)
    assert torch.equal(packed.unpacked().codes, matrix.codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gradient_is_that_of_the_ordinary_product(bits):
    matrix = random_matrix(bits, 70, 2, 16)
    weight, packed = matrix.dequantized(), pack(matrix)
    x = random_input(6, matrix).view(2, 3, -1)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    direction = torch.randn(2, 3, 70, generator=torch.Generator().manual_seed(2))
    (packed_matmul(ours, packed) * direction).sum().backward()
    ((theirs @ weight.T) * direction).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_leading_dimensions_and_dtype_are_those_of_the_input():
    packed = pack(random_matrix(4, 33, 2, 32))
    for shape in ((64,), (2, 64), (2, 3, 64), (0, 64)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            product = packed_matmul(torch.zeros(shape, dtype=dtype), packed)
            assert product.shape == (*shape[:-1], 33)
            assert product.dtype == dtype


@pytest.mark.parametrize("bits", BITS)
def test_packed_bytes_are_half_a_byte_a_code_up_to_4_bits_and_one_above(bits):
    packed = pack(random_matrix(bits, 128, 2, 128))
    assert packed.planes.numel() == 128 * 256 * (1 if bits > 4 else 0.5)


@needs_kernel
def test_symmetric_grids_and_narrow_codes_need_no_rounded_offset():
    for bits in BITS:
        for symmetric in (True, False):
            tables = kernel_tables(pack(random_matrix(bits, 64, 1, 64, symmetric=symmetric, dtype=torch.bfloat16)))
            offset_is_zero = bool((tables[0, :, :, 1] == 0).all())
            assert offset_is_zero == (symmetric or bits not in (4, 8))
