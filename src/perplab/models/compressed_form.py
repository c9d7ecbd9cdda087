"""A quantised matrix as the `compressed-tensors` format stores it.

- 32 codes in a row become as many 32-bit words as a code has bits; zero points are packed the same way along the rows,
  and only where the grid is not symmetric, which is what other readers of the format expect.
- The bit packing is the package's own, so that both sides of the format have one implementation.
"""

from collections.abc import Mapping
from typing import Any

import torch

from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix

TENSOR_NAMES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def require_compressed_tensors() -> None:
    """See that the package of the format is installed.

    Raises:
        PerplabError: it is not.
    """
    try:
        import compressed_tensors  # noqa: F401
    except ImportError:
        raise PerplabError(
            "quantised checkpoints need the package compressed-tensors, which is not installed",
            "pip install 'perplab[compression]'",
        ) from None


def compressed_form(matrix: QuantizedMatrix) -> dict[str, torch.Tensor]:
    """The tensors of the matrix, by their names after the layer's.

    Raises:
        PerplabError: compressed-tensors is not installed.
    """
    require_compressed_tensors()
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    form = {
        "weight_packed": pack_to_int32(_signed(matrix.codes, matrix.bits), matrix.bits),
        "weight_scale": matrix.scale,
        "weight_shape": torch.tensor(matrix.codes.shape),
    }
    if not _is_symmetric(matrix):
        form["weight_zero_point"] = pack_to_int32(_signed(matrix.zero, matrix.bits), matrix.bits, packed_dim=0)
    return form


def matrix_of(form: Mapping[str, torch.Tensor], bits: int) -> QuantizedMatrix:
    """The matrix that `compressed_form` gave the tensors of.

    Raises:
        PerplabError: compressed-tensors is not installed.
    """
    require_compressed_tensors()
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    scale, shape = form["weight_scale"], torch.Size(form["weight_shape"].tolist())
    codes = _unsigned(unpack_from_int32(form["weight_packed"], bits, shape), bits)
    if "weight_zero_point" in form:
        columns = form["weight_zero_point"].T.clone(memory_format=torch.contiguous_format)  # a single row included
        zero = _unsigned(unpack_from_int32(columns, bits, scale.T.shape), bits).T.contiguous()
    else:
        zero = torch.full_like(scale, _middle(bits), dtype=torch.uint8)
    return QuantizedMatrix(codes, scale, zero, bits)


def weight_scheme(matrix: QuantizedMatrix, *, grouped: bool) -> dict[str, Any]:
    """What the format's config says of such a weight.

    Args:
        matrix: the weight.
        grouped: say the size of its groups; a matrix with one group a row can do without.
    """
    return {
        "num_bits": matrix.bits,
        "type": "int",
        "symmetric": _is_symmetric(matrix),
        "strategy": "group" if grouped else "channel",
        "group_size": matrix.group_size if grouped else None,
        "dynamic": False,
    }


def _is_symmetric(matrix: QuantizedMatrix) -> bool:
    return bool((matrix.zero == _middle(matrix.bits)).all())


def _middle(bits: int) -> int:
    return 1 << (bits - 1)


def _signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes - _middle(bits)).view(torch.int8)  # uint8 wraps around


def _unsigned(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return codes.contiguous().view(torch.uint8) + _middle(bits)
