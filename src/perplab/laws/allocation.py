"""How a compute budget is spent: parameters N and tokens D, with C = 6 N D floating-point operations and M = D / N.

Two of the four quantities decide the others. N counts every parameter, embeddings included; M is tokens per parameter
and never the reverse.
"""

from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.laws.law import Floats

FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Of training: two for the forward pass and four for the backward pass."""


class Quantities(TypedDict, total=False):
    """Two of these, as numbers or as arrays that broadcast; None stands for one that is not given.

    Attributes:
        params: all parameters, embeddings included.
        tokens: training tokens.
        compute: floating-point operations of the training.
        multiplier: tokens per parameter.
    """

    params: npt.ArrayLike | None
    tokens: npt.ArrayLike | None
    compute: npt.ArrayLike | None
    multiplier: npt.ArrayLike | None


@dataclass(frozen=True)
class Allocation:
    """Models of `params` parameters trained on `tokens` tokens, float64 arrays of one shape (or numbers)."""

    params: Floats
    tokens: Floats

    @property
    def compute(self) -> Floats:
        """Floating-point operations of the training, 6 N D."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.params * self.tokens

    @property
    def multiplier(self) -> Floats:
        """Tokens per parameter, D / N."""
        return self.tokens / self.params


def allocate(**given: Unpack[Quantities]) -> Allocation:
    """The allocation that two of params, tokens, compute and multiplier decide.

    Raises:
        PerplabError: not exactly two are given, or one is not a positive finite number.
    """
    known = {name: _positive(name, value) for name, value in given.items() if value is not None}
    match known:
        case {"params": n, "tokens": d, **others} if not others:
            return Allocation(n, d)
        case {"params": n, "multiplier": m, **others} if not others:
            return Allocation(n, n * m)
        case {"params": n, "compute": c, **others} if not others:
            return Allocation(n, c / (FLOPS_PER_PARAMETER_AND_TOKEN * n))
        case {"tokens": d, "multiplier": m, **others} if not others:
            return Allocation(d / m, d)
        case {"tokens": d, "compute": c, **others} if not others:
            return Allocation(c / (FLOPS_PER_PARAMETER_AND_TOKEN * d), d)
        case {"compute": c, "multiplier": m, **others} if not others:
            n = np.sqrt(c / (FLOPS_PER_PARAMETER_AND_TOKEN * m))
            return Allocation(n, n * m)
    raise PerplabError(
        f"a prediction from {', '.join(known) or 'nothing'}", "give two of params, tokens, compute and multiplier"
    )


def _positive(name: str, value: object) -> Floats:
    numbers = np.asarray(value, dtype=np.float64)
    wrong = numbers[~(np.isfinite(numbers) & (numbers > 0))]
    if wrong.size:
        raise PerplabError(f"{name} is {wrong.flat[0]:g}", "give positive finite numbers")
    return numbers
