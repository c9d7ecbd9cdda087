"""The parametric law of Chinchilla (Hoffmann et al., arXiv 2203.15556): `L = E + A N^-alpha + B D^-beta`.

- Fitted as its authors do: Huber loss on the residuals of log L, minimised by L-BFGS from several starts, with E, A and
  B as exponentials. Residuals beyond `delta` count linearly, so that a few runs off the trend do not bend the law.
- A start is a pair of exponents with the coefficients that least squares gives them, and N and D are scaled by their
  geometric means. A few starts then do what a blind grid of thousands does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from perplab.laws.allocation import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation
from perplab.laws.law import Floats
from perplab.laws.points import positive_columns, require_identifiable, require_points
from perplab.laws.scaling import LossLaw, OverTrainingLaw
from perplab.laws.separable import nonnegative_least_squares

_START_EXPONENTS = (0.25, 0.5, 1.0)
_SMALLEST_SHARE = 0.02
"""Of the loss, for each term at the start: a term whose logarithm starts far below has no slope."""


@dataclass(frozen=True, kw_only=True)
class ChinchillaLaw(LossLaw):
    """`L(N, D) = irreducible + params_scale N^-alpha + tokens_scale D^-beta`.

    Attributes:
        params_scale: A.
        alpha: exponent of the parameters.
        tokens_scale: B.
        beta: exponent of the tokens.
    """

    params_scale: float
    alpha: float
    tokens_scale: float
    beta: float

    kind: ClassVar[str] = "chinchilla"

    @classmethod
    def fit(cls, params: npt.ArrayLike, tokens: npt.ArrayLike, loss: npt.ArrayLike, delta: float = 1e-3) -> Self:
        """Fit the law to runs; arguments as for `OverTrainingLaw.fit`.

        Args:
            params: (runs,), all parameters, embeddings included.
            tokens: (runs,), training tokens.
            loss: (runs,), mean nats per token.
            delta: residual of log L up to which the cost is quadratic.

        Raises:
            PerplabError: a value is not positive and finite, there are fewer than five distinct runs, or the runs do
                not tell the terms apart.
        """
        n, d, losses = positive_columns(params=params, tokens=tokens, loss=loss)
        require_points(5, cls.kind, n, d)
        require_identifiable(n, d)
        middle_n, middle_d = (np.exp(np.log(column).mean()) for column in (n, d))
        log_n, log_d, log_loss = np.log(n / middle_n), np.log(d / middle_d), np.log(losses)

        cost = _huber_cost(log_n, log_d, log_loss, delta)
        found = [
            optimize.minimize(
                cost,
                _start(alpha, beta, log_n, log_d, losses),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 5_000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-9},
            )
            for alpha, beta in product(_START_EXPONENTS, repeat=2)
        ]
        log_e, log_a, log_b, alpha, beta = map(float, min(found, key=lambda end: end.fun).x)
        multipliers = d / n
        return cls(
            irreducible=float(np.exp(log_e)),
            params_scale=float(np.exp(log_a) * middle_n**alpha),
            alpha=alpha,
            tokens_scale=float(np.exp(log_b) * middle_d**beta),
            beta=beta,
            multipliers=(float(multipliers.min()), float(multipliers.max())),
        )

    @classmethod
    def of_over_training(cls, law: OverTrainingLaw) -> Self:
        """The same law in Chinchilla's terms: alpha = beta = 2 eta, A = a / 6^eta, B = b / 6^eta."""
        unit = FLOPS_PER_PARAMETER_AND_TOKEN**law.eta
        return cls(
            irreducible=law.irreducible,
            params_scale=law.a / unit,
            alpha=2 * law.eta,
            tokens_scale=law.b / unit,
            beta=2 * law.eta,
            multipliers=law.multipliers,
        )

    def _reducible(self, spent: Allocation) -> Floats:
        return self.params_scale * spent.params**-self.alpha + self.tokens_scale * spent.tokens**-self.beta


def _huber_cost(
    log_n: Floats, log_d: Floats, log_loss: Floats, delta: float
) -> Callable[[Floats], tuple[float, Floats]]:
    """Huber cost of (log E, log A, log B, alpha, beta) and its gradient, in units of delta squared."""

    def cost_and_gradient(theta: Floats) -> tuple[float, Floats]:
        log_e, log_a, log_b, alpha, beta = theta
        terms = np.stack([np.full_like(log_n, log_e), log_a - alpha * log_n, log_b - beta * log_d])
        predicted = special.logsumexp(terms, axis=0)
        e, a, b = np.exp(terms - predicted)
        residual = (predicted - log_loss) / delta
        slope = np.clip(residual, -1, 1)
        gradient = [slope @ e, slope @ a, slope @ b, -slope @ (a * log_n), -slope @ (b * log_d)]
        return float(special.huber(1, residual).sum()), np.array(gradient) / delta

    return cost_and_gradient


def _start(alpha: float, beta: float, log_n: Floats, log_d: Floats, loss: Floats) -> Floats:
    design = np.column_stack([np.ones_like(loss), np.exp(-alpha * log_n), np.exp(-beta * log_d)])
    coefficients = np.maximum(nonnegative_least_squares(design, loss), _SMALLEST_SHARE * loss.mean())
    return np.array([*np.log(coefficients), alpha, beta])
