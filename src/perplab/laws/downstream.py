"""From loss to the error of a suite of tasks: `Err(L) = eps - k exp(-gamma L)`, that is `eps - k PP^-gamma`.

- eps is the error of a model that knows nothing, `eps - k exp(-gamma E)` that of a model at the irreducible loss.
- `1 - PP^-n`, the error of writing n tokens right in a row, is the case eps = k = 1, gamma = n.
- Fitted on measured losses, never on predicted ones; linear in eps and k once gamma is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.laws.allocation import Quantities
from perplab.laws.law import Floats, Law, warn
from perplab.laws.points import positive_columns, require_points
from perplab.laws.scaling import LossLaw
from perplab.laws.separable import fit_separable
from perplab.laws.separable_batch import fit_separable_each

_GAMMAS = 0.02, 20.0
_LEAST_SPAN = 0.05
"""Errors that differ by less say too little about the shape of the law."""


@dataclass(frozen=True, kw_only=True)
class DownstreamErrorLaw(Law):
    """`Err(L) = eps - k exp(-gamma L)`.

    Attributes:
        eps: error at an infinite loss.
        k: how far the error could fall, at L = 0.
        gamma: how fast it falls with the loss.
    """

    eps: float
    k: float
    gamma: float

    kind: ClassVar[str] = "downstream-error"
    inputs: ClassVar[tuple[str, ...]] = ("loss",)
    target: ClassVar[str] = "error"

    @classmethod
    def fit(cls, loss: npt.ArrayLike, error: npt.ArrayLike) -> Self:
        """Fit the law by variable projection.

        Args:
            loss: (runs,), measured mean nats per token; at least one run's tasks should be above chance.
            error: (runs,), mean top-1 error over the tasks, from 0 to 1.

        Raises:
            PerplabError: a value is not positive and finite, an error is above 1, or fewer than three losses differ.
        """
        losses, errors = positive_columns(loss=loss, error=error)
        if errors.max(initial=0) > 1:
            raise PerplabError(f"error is {errors.max():g}", "give errors as shares, 1 - accuracy")
        require_points(3, cls.kind, losses)
        span = float(np.ptp(errors))
        if span < _LEAST_SPAN:
            warn(f"the errors span only {span:.3f}: runs near chance do not determine eps, k and gamma")
        gamma, (eps, scaled_k) = fit_separable(_columns(losses), errors, *_GAMMAS)
        return cls(eps=float(eps), k=float(scaled_k * np.exp(gamma * losses.min())), gamma=gamma)

    @classmethod
    def fit_each(cls, targets: Floats, **columns: Any) -> list[Self]:
        """The laws of the same losses with other errors, (laws, runs), at once."""
        (losses,) = positive_columns(loss=columns["loss"])
        positive_columns(error=targets.ravel())
        require_points(3, cls.kind, losses)
        gammas, coefficients = fit_separable_each(_columns(losses), targets, *_GAMMAS)
        return [
            cls(eps=float(eps), k=float(scaled_k * np.exp(gamma * losses.min())), gamma=float(gamma))
            for gamma, (eps, scaled_k) in zip(gammas, coefficients, strict=True)
        ]

    def predict(self, loss: npt.ArrayLike) -> Floats:
        """Mean top-1 error at a loss in nats per token."""
        return self.eps - self.k * np.exp(-self.gamma * np.asarray(loss, dtype=np.float64))


def _columns(losses: Floats) -> Callable[[npt.ArrayLike], Floats]:
    """From gamma, or gammas of shape (..., 1), to the design matrix of eps and k, (..., runs, 2).

    The exponential is of the distance to the smallest loss, so that it neither vanishes nor overflows.
    """

    def columns(gamma: npt.ArrayLike) -> Floats:
        decay = np.exp(-np.asarray(gamma) * (losses - losses.min()))
        return np.stack([np.ones_like(decay), -decay], axis=-1)

    return columns


def chain(loss_law: LossLaw, error_law: DownstreamErrorLaw) -> Callable[..., Floats]:
    """From a compute budget to the error of the tasks: a function of the arguments of `loss_law.predict`."""

    def predict(**given: Unpack[Quantities]) -> Floats:
        return error_law.predict(loss_law.predict(**given))

    return predict
