"""The product of a layer that lives as its singular value decomposition, where a few singular vectors train.

With the vectors as rows of `left` (k, out) and `right` (k, in), the product is (x right^T * values) left. Its backward
pass never forms the gradient of the weight and never divides by a singular value:

- c = x right^T (tokens, k) and r = y' left^T (tokens, k) are all it needs from the layer's two sides;
- values' = sum over tokens of r * c, x' = (r * values) right;
- for trained vectors i: left_i' = c_i^T y' and right_i' = r_i^T x, times the singular value unless `enhanced`.

The enhanced gradient lets vectors of small singular values move as far as others; for Adam, which divides a gradient by
its size, that changes next to nothing.
"""

from typing import Any

import torch
from torch import Tensor


def spectral_product(
    inputs: Tensor,
    left: Tensor,
    right: Tensor,
    values: Tensor,
    all_left: Tensor,
    all_right: Tensor,
    active: Tensor,
    enhanced: bool,
) -> Tensor:
    """Multiply with a weight given by its singular values and vectors.

    Args:
        inputs: (tokens, in), in the dtype that products are computed in.
        left: (rank, out), trained left vectors.
        right: (rank, in), trained right vectors.
        values: (k,) singular values, all trained.
        all_left: (k, out), left vectors; rows that are trained are not read.
        all_right: (k, in), right vectors; rows that are trained are not read.
        active: (rank,) rows of the trained vectors.
        enhanced: leave the singular value out of its vectors' gradients.

    Returns:
        (tokens, out).
    """
    arguments = (inputs, left, right, values, all_left, all_right, active, enhanced)
    output: Tensor = _SpectralProduct.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


class _SpectralProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        left: Tensor,
        right: Tensor,
        values: Tensor,
        all_left: Tensor,
        all_right: Tensor,
        active: Tensor,
        enhanced: bool,
    ) -> Tensor:
        coordinates = inputs @ _whole(all_right, right, active, inputs.dtype).T
        # Whole matrices are put together again in the backward pass, so that no copy of them waits for it.
        ctx.save_for_backward(inputs, coordinates, left, right, values, all_left, all_right, active)
        ctx.enhanced = enhanced
        return (coordinates * values.to(inputs.dtype)) @ _whole(all_left, left, active, inputs.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, coordinates, left, right, values, all_left, all_right, active = ctx.saved_tensors
        gradient = gradient.to(inputs.dtype)
        reflected = gradient @ _whole(all_left, left, active, inputs.dtype).T
        of_values = (reflected.to(values.dtype) * coordinates.to(values.dtype)).sum(dim=0)
        of_inputs = (reflected * values.to(inputs.dtype)) @ _whole(all_right, right, active, inputs.dtype)
        of_left = (coordinates[:, active].T @ gradient).to(left.dtype)
        of_right = (reflected[:, active].T @ inputs).to(right.dtype)
        if not ctx.enhanced:
            size = values[active, None]
            of_left, of_right = of_left * size, of_right * size
        return of_inputs, of_left, of_right, of_values, None, None, None, None


def _whole(frozen: Tensor, trained: Tensor, active: Tensor, dtype: torch.dtype) -> Tensor:
    """All vectors: the frozen ones with the trained ones in their rows."""
    return frozen.to(dtype).index_copy(0, active, trained.to(dtype))
