"""Products with a matrix whose codes are packed two to a byte.

- Codes of up to 4 bits lie in one plane of nibbles, wider ones in two: the high nibbles and the low ones. One layout
  and one kernel serve every width from 1 to 8 bits.
- The layout is the one that torch's int4 kernel for CPU reads: blocks of rows, column by column. Its block is as wide
  as the processor's vectors and is asked of torch once; where torch has no such kernel, any block will do.
- A handful of rows (decoding) goes through that kernel, in bfloat16. More rows, other types and devices, and groups
  that the kernel does not take have the matrix spread out, a cache-sized part at a time, for the ordinary product:
  weights in memory never exceed their packed size.
- A code narrower than its plane is kept relative to its zero point, around the plane's middle. The kernel adds a
  group's offset as a bfloat16 number, and this makes it 0: an offset that is rounded pulls a whole group one way.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F

from perplab.kernels.quantized_matrix import QuantizedMatrix

_KERNEL_GROUPS = (256, 128, 64, 32)
_KERNEL_ROWS = 64  # of x, over the planes: above, spreading the matrix out pays
_PART_BYTES = 2**21  # of the matrix spread out at a time: about an L2 cache
_NIBBLE = 15


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised matrix in the form that `packed_matmul` reads. Rows are padded to whole blocks.

    Args:
        planes: (planes, blocks, in, block / 2) uint8; a byte holds one column of row i of its block in its low nibble
            and of row i + block / 2 in its high one. The plane of high nibbles comes first.
        scale: (groups, rows).
        zero: (groups, rows) uint8, the code of 0.
        tables: (planes, kernel groups, rows, 2) bfloat16, factor and offset of each plane's nibbles less 8; None where
            the kernel cannot be used.
        out_features: rows without the padding.
        bits: of a code.
    """

    planes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    tables: torch.Tensor | None
    out_features: int
    bits: int

    @cached_property
    def kernel_operands(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each plane as the kernel wants its shape, and its table: made once, because decoding waits for every call."""
        if self.tables is None:
            return []
        in_features = self.planes.shape[2]
        return [
            (plane.view(-1, in_features // 2), table) for plane, table in zip(self.planes, self.tables, strict=True)
        ]

    def unpacked(self) -> QuantizedMatrix:
        """The matrix that was packed, exactly."""
        codes = torch.cat([steps for _, steps in _steps(self)], dim=1)
        grouped = codes.view(len(self.zero), -1, codes.shape[1]).view(torch.uint8)
        grouped = grouped + (_centre(self.bits) if _fills_plane(self.bits) else self.zero.unsqueeze(1))
        rows = slice(self.out_features)
        return QuantizedMatrix(
            grouped.view_as(codes)[:, rows].T.contiguous(),
            self.scale[:, rows].T.contiguous(),
            self.zero[:, rows].T.contiguous(),
            self.bits,
        )


def pack(matrix: QuantizedMatrix) -> PackedMatrix:
    """The matrix packed for the device it is on; every shape and width can be."""
    out_features, in_features = matrix.codes.shape
    block = _kernel_block() or 64
    padding = (0, 0, 0, -out_features % block)
    codes, scale, zero = (F.pad(part, padding) for part in (matrix.codes, matrix.scale, matrix.zero))
    if not _fills_plane(matrix.bits):
        codes = codes - zero.repeat_interleave(matrix.group_size, dim=1) + _centre(matrix.bits)
    blocks = codes.view(-1, block, in_features).transpose(1, 2)
    first, second = blocks.chunk(2, dim=2)
    if matrix.bits <= 4:
        planes = torch.stack([first | (second << 4)])
    else:
        planes = torch.stack([(first >> 4) | (second & ~_NIBBLE), (first & _NIBBLE) | (second << 4)])
    scale, zero = scale.T.contiguous(), zero.T.contiguous()
    packed = PackedMatrix(planes, scale, zero, None, out_features, matrix.bits)
    return replace(packed, tables=kernel_tables(packed))


def kernel_tables(packed: PackedMatrix) -> torch.Tensor | None:
    """The `tables` of a matrix on the device and in the dtype that it has now.

    The kernel computes the sum of factor * (nibble - 8) + offset over the planes.
    """
    group_size = packed.planes.shape[2] // len(packed.scale)
    kernel_group_size = next((size for size in _KERNEL_GROUPS if group_size % size == 0), None)
    fits = packed.scale.dtype == torch.bfloat16 and packed.scale.device.type == "cpu" and _kernel_block() is not None
    if kernel_group_size is None or not fits:
        return None
    factor = packed.scale.float()
    offset = factor * (_centre(packed.bits) - packed.zero.float())
    if not _fills_plane(packed.bits):
        offset = torch.zeros_like(factor)
    tables = [(factor, offset)] if len(packed.planes) == 1 else [(16 * factor, offset), (factor, 8 * factor)]
    stacked = torch.stack([torch.stack(pair, dim=-1) for pair in tables]).to(torch.bfloat16)
    return stacked.repeat_interleave(group_size // kernel_group_size, dim=1)


def packed_matmul(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    """`x @ W.T`, differentiable in x.

    Args:
        x: (..., in), floating point.
        packed: W, (out, in).

    Returns:
        (..., out), in x's dtype.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return _Differentiable.apply(x, packed)  # type: ignore[no-untyped-call]
    return _product(x, packed)


def reference_matmul(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    """What `packed_matmul` computes, with the whole matrix spread out."""
    return x @ packed.unpacked().dequantized().to(x.dtype).T


def _product(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    operands = packed.kernel_operands
    if operands and x.dtype == torch.bfloat16 and len(rows) * len(operands) <= _KERNEL_ROWS:
        product = _kernel_product(rows, operands)
    else:
        product = rows.new_empty(len(rows), packed.scale.shape[1])
        for place, part in _parts(packed, x.dtype):
            torch.mm(rows, part, out=product[:, place])
    return product[:, : packed.out_features].reshape(*x.shape[:-1], packed.out_features)


class _Differentiable(torch.autograd.Function):
    """The product with its gradient: the matrix is spread out anew for it, so that none is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
        ctx.packed = packed
        return _product(x, packed)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        padded = F.pad(gradient, (0, ctx.packed.scale.shape[1] - ctx.packed.out_features))
        products = (padded[..., place] @ part.T for place, part in _parts(ctx.packed, gradient.dtype))
        return sum(products, start=gradient.new_zeros(())), None


def _kernel_product(rows: torch.Tensor, operands: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    group_size = rows.shape[1] // operands[0][1].shape[0]
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    products = [kernel(rows, plane, group_size, table) for plane, table in operands]
    return products[0] if len(products) == 1 else products[0] + products[1]


def _parts(packed: PackedMatrix, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Runs of rows, and those rows spread out as (in, rows): the same numbers as `QuantizedMatrix.dequantized`.

    All parts share one buffer: a part is valid until the next is asked for.
    """
    buffer = packed.scale.new_empty(0)  # a fresh one each time would come from the system page by page
    for place, steps in _steps(packed):
        if len(buffer) < steps.numel():
            buffer = packed.scale.new_empty(steps.numel())
        part = buffer[: steps.numel()].view_as(steps).copy_(steps)
        grouped = part.view(len(packed.scale), -1, part.shape[1])
        if _fills_plane(packed.bits):
            grouped.sub_(packed.zero[:, None, place].to(grouped.dtype) - _centre(packed.bits))
        grouped.mul_(packed.scale[:, None, place])
        yield place, part.to(dtype)


def _steps(packed: PackedMatrix) -> Iterator[tuple[slice, torch.Tensor]]:
    """Runs of rows, and what is stored for them less the middle of the plane, as (in, rows) int8."""
    _, blocks, in_features, half = packed.planes.shape
    at_once = max(1, _PART_BYTES // (in_features * 2 * half * packed.scale.element_size()))
    for start in range(0, blocks, at_once):
        planes = packed.planes[:, start : start + at_once].transpose(1, 2)
        width = planes.shape[2] * 2 * half
        codes = planes.new_empty(in_features, planes.shape[2], 2, half)
        if len(planes) == 1:
            codes[:, :, 0], codes[:, :, 1] = planes[0] & _NIBBLE, planes[0] >> 4
        else:
            high, low = planes
            codes[:, :, 0], codes[:, :, 1] = (high << 4) | (low & _NIBBLE), (high & ~_NIBBLE) | (low >> 4)
        steps = codes.sub_(_centre(packed.bits)).view(torch.int8).view(in_features, width)
        yield slice(start * 2 * half, start * 2 * half + width), steps


def _centre(bits: int) -> int:
    return 8 if bits <= 4 else 128


def _fills_plane(bits: int) -> bool:
    return bits in (4, 8)


@cache
def _kernel_block() -> int | None:
    """Rows in a block of torch's int4 kernel on this processor; None where it has no blocks."""
    codes = torch.randint(0, 16, (64, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()
    for block in (64, 32):
        first, second = codes.to(torch.uint8).view(-1, block, 32).transpose(1, 2).chunk(2, dim=2)
        if torch.equal((first | (second << 4)).flatten(), packed):
            return block
    return None
