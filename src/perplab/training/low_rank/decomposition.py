"""The singular value decomposition, with an error that tells a user what to do."""

import torch
from torch import Tensor

from perplab.errors import PerplabError


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (out, k), values (k,), right vectors (k, in) of an (out, in) matrix, in float32 or float64.

    Raises:
        PerplabError: the decomposition does not converge, as for a matrix that is not finite.
    """
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    try:
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
    except RuntimeError as error:  # LinAlgError is one
        raise PerplabError(
            f"a matrix of {matrix.shape[0]} x {matrix.shape[1]} has no singular value decomposition ({error})",
            "look for weights or gradients that are not finite; a lower learning rate may mend it",
        ) from error
    return left, values, right
