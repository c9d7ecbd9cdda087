"""Singular values of a model's matrices, and models that keep only the largest of them.

Energy is the sum of squared singular values, which is the squared Frobenius norm of the matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perplab.errors import PerplabError
from perplab.training.low_rank.decomposition import thin_svd
from perplab.training.low_rank.layer import matrix_of
from perplab.training.low_rank.replacing import layers_in_place_of_linear, merge_low_rank, target_layers


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a layer.

    Args:
        path: of the layer.
        values: (k,), largest first.
    """

    path: str
    values: Tensor

    def energy_rank(self, energy: float) -> int:
        """The smallest number of largest values that holds this share of the energy.

        Raises:
            PerplabError: the share is not above 0 and at most 1.
        """
        if not 0 < energy <= 1:
            raise PerplabError(f"energy is {energy}", "give a share above 0 and at most 1")
        if energy == 1:
            return len(self.values)
        held = self.values.double().square().cumsum(dim=0)
        return min(int((held < energy * held[-1]).sum()) + 1, len(self.values))


def spectrum(model: nn.Module) -> list[Spectrum]:
    """Singular values of every linear layer inside a model's blocks, whether under a low-rank method or not."""
    matrices = {path: matrix_of(layer) for path, layer in target_layers(model).items()}
    matrices |= {path: layer.matrix() for path, layer in layers_in_place_of_linear(model).items()}
    return [Spectrum(path, thin_svd(matrix)[1]) for path, matrix in matrices.items()]


@torch.no_grad()
def truncate(model: nn.Module, energy: float) -> dict[str, int]:
    """Set the smallest singular values of every layer to zero, in place; the model becomes a plain one.

    Args:
        model: a plain model, or one under a low-rank method, which is merged first.
        energy: share of each matrix's energy that stays, above 0 and at most 1.

    Returns:
        The rank that is left, by path of the layer.

    Raises:
        PerplabError: the share is not above 0 and at most 1.
    """
    merge_low_rank(model)
    ranks = {}
    for path, layer in target_layers(model).items():
        matrix = matrix_of(layer)
        left, values, right = thin_svd(matrix)
        rank = ranks[path] = Spectrum(path, values).energy_rank(energy)
        if rank < len(values):
            matrix.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    return ranks
