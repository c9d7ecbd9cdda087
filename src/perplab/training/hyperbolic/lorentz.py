"""Layers from points to points of the Lorentz model, without tangent spaces: HyboNet (Chen et al., arXiv 2105.14686).

A point x of 1 + dimension numbers has -x_0^2 + x_1^2 + ... = -1 and x_0 > 0; x_0 is its time, the rest its space.
Decisions:

- A layer's matrix is an `nn.Linear` like any other. What follows brings its output back to the manifold.
- Time is always computed from space, so that the constraint holds to rounding also where space is zero.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from perplab.errors import PerplabError

try:
    import geoopt
except ImportError:
    raise PerplabError("hyperbolic networks need geoopt", "pip install 'perplab[hyperbolic]'") from None

LORENTZ = geoopt.Lorentz(k=1.0)
_LEAST = 1e-8
"""Smallest square that a length is taken of: gradients stay finite at the origin."""
_LEAST_TIME = 1.1


class LorentzLinear(nn.Module):
    """A matrix product between points: the product's first number decides how far out, the others in which direction.

    Args:
        in_features: 1 + dimension of the input.
        out_features: 1 + dimension of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        bound = 1 / math.sqrt(out_features)
        with torch.no_grad():
            nn.init.uniform_(self.linear.weight, -bound, bound)
            self.linear.weight[:, 0] = 0
            self.linear.bias.zero_()

    def forward(self, points: Tensor) -> Tensor:
        """Map points (..., in_features) to points (..., out_features)."""
        product = self.linear(points)
        time = self.log_scale.exp() * product[..., :1].sigmoid() + _LEAST_TIME
        space = product[..., 1:]
        length = space.square().sum(dim=-1, keepdim=True).clamp(min=_LEAST).sqrt()
        return on_manifold(space / length * (time.square() - 1).sqrt())


def on_manifold(space: Tensor) -> Tensor:
    """The points (..., 1 + dimension) whose space is (..., dimension)."""
    points: Tensor = LORENTZ.projx(torch.nn.functional.pad(space, (1, 0)))
    return points


def from_features(features: Tensor) -> Tensor:
    """Points (..., 1 + dimension) of Euclidean features, read as tangent vectors at the origin."""
    points: Tensor = LORENTZ.expmap0(torch.nn.functional.pad(features, (1, 0)))
    return on_manifold(points[..., 1:])


def lorentz_mean(weights: Tensor, points: Tensor) -> Tensor:
    """The centroids of points: their weighted sums, scaled back to the manifold.

    Args:
        weights: (rows, nodes), non-negative and not all zero in a row.
        points: (nodes, 1 + dimension).

    Returns:
        (rows, 1 + dimension).
    """
    total = weights @ points
    size = LORENTZ.inner(total, total, total, keepdim=True).abs().clamp(min=_LEAST).sqrt()
    return on_manifold((total / size)[..., 1:])


def squared_distance(left: Tensor, right: Tensor) -> Tensor:
    """The squared Lorentz distance -2 - 2 <x, y> of points that broadcast, without their last axis."""
    distance: Tensor = -2 - 2 * LORENTZ.inner(left, left, right)  # its first argument is a base point, not read
    return distance


class LorentzEncoder(nn.Module):
    """Features of a graph's nodes to points, by layers that multiply and then average over neighbours.

    Args:
        features: numbers a node.
        dimension: of the space that points lie in.
        layers: of the network.
    """

    def __init__(self, features: int, dimension: int, layers: int) -> None:
        super().__init__()
        widths = [features + 1, *([dimension + 1] * layers)]
        self.layers = nn.ModuleList(LorentzLinear(*pair) for pair in pairwise(widths))

    def forward(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """Encode nodes.

        Args:
            features: (nodes, features).
            neighbours: (nodes, nodes), rows that sum to 1.

        Returns:
            (nodes, 1 + dimension) points.
        """
        points = from_features(features)
        for layer in self.layers:
            points = lorentz_mean(neighbours, layer(points))
        return points
