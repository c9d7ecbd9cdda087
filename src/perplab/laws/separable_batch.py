"""Variable projection of many targets over the same points at once, which is what a bootstrap asks for.

The search is that of `perplab.laws.separable`, for every target in step: the same grid, then the golden section of each
target's own valley. Coefficients of zero or above have a closed form here: of all subsets of the columns, those whose
plain least squares come out at zero or above are candidates, and the candidate of least residual is the constrained
optimum. There are few columns, so all subsets are tried.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from perplab.laws.law import Floats
from perplab.laws.separable import GRID

_SECTIONS = 40
"""Each leaves 0.618 of the valley: together 4e-9 of it, where rounding hides the floor."""
_GOLDEN = (np.sqrt(5) - 1) / 2


def fit_separable_each(
    columns: Callable[[Floats], Floats], targets: Floats, low: float, high: float
) -> tuple[Floats, Floats]:
    """For each target the exponent and the coefficients that `fit_separable` finds, without its warnings.

    Args:
        columns: from exponents of shape (..., 1) to design matrices of shape (..., points, columns).
        targets: (targets, points).
        low: smallest exponent tried.
        high: largest exponent tried.

    Returns:
        Exponents, (targets,), and coefficients of zero or above, (targets, columns).
    """
    grid = np.linspace(np.log(low), np.log(high), GRID)
    costs = np.stack([_nonnegative(columns(np.exp(point[None])), targets)[1] for point in grid])
    nearest = grid[np.argmin(costs, axis=0)]
    step = grid[1] - grid[0]
    log_exponents = _golden_section(
        lambda points: _nonnegative(columns(np.exp(points[:, None])), targets)[1], nearest - step, nearest + step
    )
    exponents = np.exp(log_exponents)
    return exponents, _nonnegative(columns(exponents[:, None]), targets)[0]


def _golden_section(cost: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Where each of several functions of one valley is least, (functions,), between `low` and `high`."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_SECTIONS):
        goes_left = at_left < at_right
        low, high = np.where(goes_left, low, left), np.where(goes_left, right, high)
        inner = np.where(goes_left, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_inner = cost(inner)
        left, right = np.where(goes_left, inner, right), np.where(goes_left, left, inner)
        at_left, at_right = np.where(goes_left, at_inner, at_right), np.where(goes_left, at_left, at_inner)
    return (low + high) / 2


def _nonnegative(designs: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Best coefficients of zero or above, (targets, columns), and the squared residual they leave, (targets,).

    Args:
        designs: (points, columns), one for all targets, or (targets, points, columns).
        targets: (targets, points).
    """
    scale = np.linalg.norm(designs, axis=-2)
    unit = designs / scale[..., None, :]
    number = designs.shape[-1]
    best, least = np.zeros((len(targets), number)), np.sum(targets**2, axis=-1)
    for kept in (list(subset) for size in range(number, 0, -1) for subset in combinations(range(number), size)):
        basis, triangle = np.linalg.qr(unit[..., kept])
        projected = (targets[:, None, :] @ basis)[:, 0]
        coefficients = np.linalg.solve(triangle, projected[..., None])[..., 0]
        cost = np.sum((targets - (basis @ projected[..., None])[..., 0]) ** 2, axis=-1)
        better = (coefficients >= 0).all(axis=-1) & (cost < least)
        least = np.where(better, cost, least)
        best[better] = 0
        best[np.ix_(better, kept)] = coefficients[better]
        if len(kept) == number and better.all():
            break
    return best / scale, least
