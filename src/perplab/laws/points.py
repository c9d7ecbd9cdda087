"""The points a law is fitted on, checked at the door: numbers that mean something, and enough of them."""

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.laws.law import Floats

SAME_WITHIN = 1.05
"""Quantities within this ratio of each other count as one: rounding of token counts is no variation."""


def positive_columns(**columns: npt.ArrayLike) -> list[Floats]:
    """The columns as float64 arrays of shape (points,).

    Raises:
        PerplabError: lengths differ, or a value is not a positive finite number.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(array.ndim != 1 for array in arrays.values()) or len(set(shapes.values())) != 1:
        raise PerplabError(f"columns of shapes {shapes}", "give one number a run in each column")
    for name, array in arrays.items():
        wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if wrong.size:
            raise PerplabError(f"{name} is {array[wrong[0]]:g} in point {wrong[0]}", "give positive finite numbers")
    return list(arrays.values())


def require_points(needed: int, kind: str, *columns: Floats) -> None:
    """Refuse fewer distinct points than the law has parameters; repeats of a point count once.

    Raises:
        PerplabError: there are too few.
    """
    distinct = len(np.unique(np.column_stack(columns), axis=0))
    if distinct < needed:
        raise PerplabError(
            f"{distinct} distinct points for the {needed} parameters of the {kind} law", "measure more runs"
        )


def varies(values: Floats) -> bool:
    """Whether the values differ by more than rounding."""
    return bool(values.max() > SAME_WITHIN * values.min())


def require_identifiable(params: Floats, tokens: Floats) -> None:
    """Refuse runs from which the terms in N and in D cannot be told apart, or one of them from the constant.

    Raises:
        PerplabError: all runs have one multiplier, one size or one number of tokens.
    """
    for name, values, unidentifiable in (
        ("token multiplier", tokens / params, "a and b are"),
        ("number of parameters", params, "the irreducible loss is"),
        ("number of tokens", tokens, "the irreducible loss is"),
    ):
        if not varies(values):
            raise PerplabError(
                f"{unidentifiable} not identifiable: all runs have one {name}, {values[0]:.4g}",
                f"add a run with another {name}",
            )
