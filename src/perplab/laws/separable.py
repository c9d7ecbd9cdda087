"""Least squares for a model that is linear in its coefficients once one exponent is known: variable projection.

For each exponent the best coefficients follow from a linear problem, so only the exponent is searched: a grid finds the
valley and Brent's method its floor. There are no starting guesses and no local optimum of a joint search. Coefficients
are held at zero or above.
"""

from collections.abc import Callable

import numpy as np
from scipy import optimize

from perplab.laws.law import Floats, warn

GRID = 120
"""Exponents tried before the search, evenly spread in their logarithm."""


def fit_separable(columns: Callable[[float], Floats], target: Floats, low: float, high: float) -> tuple[float, Floats]:
    """The exponent and the coefficients of zero or above that minimise `|columns(exponent) @ coefficients - target|`.

    An exponent at an edge of the search is a `LawWarning`.

    Args:
        columns: from an exponent to a design matrix of shape (points, columns).
        target: (points,).
        low: smallest exponent tried.
        high: largest exponent tried.
    """

    def cost(log_exponent: float) -> float:
        design = columns(float(np.exp(log_exponent)))
        return float(np.sum((design @ nonnegative_least_squares(design, target) - target) ** 2))

    grid = np.linspace(np.log(low), np.log(high), GRID)
    best = int(np.argmin([cost(point) for point in grid]))
    step = grid[1] - grid[0]
    found = optimize.minimize_scalar(  # around zero, for the search's tolerance is relative to where it looks
        lambda shift: cost(grid[best] + shift), bounds=(-step, step), method="bounded", options={"xatol": 1e-14}
    )
    exponent = float(np.exp(grid[best] + found.x))
    if best in (0, GRID - 1):
        warn(f"the best exponent is at the edge of the search, {exponent:.3g}: the runs do not determine it")
    return exponent, nonnegative_least_squares(columns(exponent), target)


def nonnegative_least_squares(design: Floats, target: Floats) -> Floats:
    """Coefficients of zero or above that minimise `|design @ coefficients - target|`, on columns of unit length.

    Where the plain solution is already non-negative it is the answer, and more exact than the constrained solver's.
    """
    scale = np.linalg.norm(design, axis=0)
    solution = np.linalg.lstsq(design / scale, target, rcond=None)[0]
    if np.any(solution < 0):
        solution = optimize.nnls(design / scale, target)[0]
    return np.asarray(solution / scale, dtype=np.float64)
