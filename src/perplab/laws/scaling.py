"""How the loss of a model falls with its training compute: two laws of one shape.

Over-training law (Gadre et al., "Language models scale reliably with over-training and on downstream tasks",
arXiv 2403.08540), with C = 6 N D and M = D / N:

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta

It is Chinchilla's E + A N^-alpha + B D^-beta with alpha = beta = 2 eta, a = A 6^eta and b = B 6^eta. At a fixed M it is
the power law `L(C) = E + offset C^-eta`, and eta does not depend on M.

- Both laws are fitted to L itself by unweighted least squares, as the paper does; coefficients are zero or above.
- `varpro` searches eta alone and is the default. `lm` is Levenberg-Marquardt from several starts, the paper's way; it
  finds the same optimum.
- C and M are scaled by the geometric mean of the runs before Levenberg-Marquardt, whose starts then suit any data.
- A law remembers the multipliers it was fitted on, for what is read off outside them is a guess and says so.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import numpy.typing as npt
from scipy import optimize

from perplab.errors import PerplabError
from perplab.laws.allocation import Allocation, Quantities, allocate
from perplab.laws.law import Floats, Law, warn
from perplab.laws.points import positive_columns, require_identifiable, require_points, varies
from perplab.laws.separable import fit_separable
from perplab.laws.separable_batch import fit_separable_each

_EXPONENTS = 0.005, 2.0
_CONVERGED = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 10_000}
FitMethod = Literal["varpro", "lm"]


@dataclass(frozen=True, kw_only=True)
class LossLaw(Law):
    """A law of the loss in nats per token.

    Attributes:
        irreducible: E, what no compute removes.
        multipliers: smallest and largest tokens per parameter of the fitted runs; None where nothing was fitted.
    """

    irreducible: float
    multipliers: tuple[float, float] | None = None

    inputs: ClassVar[tuple[str, ...]] = ("params", "tokens")
    target: ClassVar[str] = "loss"

    def predict(self, **given: Unpack[Quantities]) -> Floats:
        """Loss in nats per token, from two of params, tokens, compute and multiplier; they broadcast.

        Raises:
            PerplabError: not exactly two are given, or one is not a positive finite number.
        """
        return self.irreducible + self.reducible(**given)

    def reducible(self, **given: Unpack[Quantities]) -> Floats:
        """The part of the predicted loss above the irreducible loss; arguments as for `predict`."""
        return self._reducible(allocate(**given))

    @abstractmethod
    def _reducible(self, spent: Allocation) -> Floats: ...

    def excess(self, loss: npt.ArrayLike) -> Floats:
        """Measured losses less the irreducible loss, to be drawn or fitted on a logarithmic axis.

        Raises:
            PerplabError: a loss is not above the irreducible loss, so that its excess has no logarithm.
        """
        losses = np.asarray(loss, dtype=np.float64)
        wrong = losses[~(losses > self.irreducible)]
        if wrong.size:
            raise PerplabError(
                f"loss {wrong.flat[0]:g} is not above the irreducible loss {self.irreducible:g} of the law",
                "fit the law to runs of the same text, or leave this run out",
            )
        return losses - self.irreducible

    def warn_outside(self, multiplier: float) -> None:
        """Warn where a multiplier lies outside those of the fitted runs."""
        if self.multipliers and not self.multipliers[0] <= multiplier <= self.multipliers[1]:
            low, high = self.multipliers
            warn(f"multiplier {multiplier:.3g} lies outside the fitted {low:.4g} to {high:.4g}: do not rely on it")


@dataclass(frozen=True, kw_only=True)
class OverTrainingLaw(LossLaw):
    """`L(C, M) = irreducible + (a M^eta + b M^-eta) C^-eta`.

    Attributes:
        a: weight of the term in the parameters, which is large where a model is small for its tokens.
        b: weight of the term in the tokens, which is large where they are few for the model.
        eta: exponent of compute, at every multiplier.
    """

    a: float
    b: float
    eta: float

    kind: ClassVar[str] = "over-training"

    @classmethod
    def fit(
        cls, params: npt.ArrayLike, tokens: npt.ArrayLike, loss: npt.ArrayLike, method: FitMethod = "varpro"
    ) -> Self:
        """Fit the law to runs, each of them trained to the end of its own schedule.

        Args:
            params: (runs,), all parameters, embeddings included.
            tokens: (runs,), training tokens, no more than one epoch.
            loss: (runs,), mean nats per token of one tokenizer on one text.
            method: `varpro` (variable projection) or `lm` (Levenberg-Marquardt from several starts).

        Raises:
            PerplabError: a value is not positive and finite, there are fewer than four distinct runs, or the runs do
                not tell a and b or the irreducible loss apart.
        """
        n, d, losses = positive_columns(params=params, tokens=tokens, loss=loss)
        runs = cls._checked(n, d)
        methods = {"varpro": _by_projection, "lm": _by_levenberg_marquardt}
        if method not in methods:
            raise PerplabError(f"the method {method!r} is unknown", f"choose from {', '.join(methods)}")
        irreducible, a, b, eta = methods[method](runs, losses)
        if eta <= 0:
            raise PerplabError(f"eta comes out as {eta:.3g}: the loss does not fall with compute", "fit other runs")
        _warn_of_bounds(irreducible=irreducible, a=a, b=b)
        return cls(irreducible=irreducible, a=a, b=b, eta=eta, multipliers=_span(runs.multiplier))

    @classmethod
    def fit_above(cls, irreducible: float, params: npt.ArrayLike, tokens: npt.ArrayLike, loss: npt.ArrayLike) -> Self:
        """Fit a, b and eta where the irreducible loss is known, as it is of a generated language.

        Args:
            irreducible: E, nats per token.
            params: as for `fit`, and so are the others.
            tokens: (runs,).
            loss: (runs,), above `irreducible`.

        Raises:
            PerplabError: as for `fit`, with three distinct runs, or a loss is not above the irreducible one.
        """
        n, d, losses = positive_columns(params=params, tokens=tokens, loss=loss)
        (reducible,) = positive_columns(reducible_loss=losses - irreducible)
        require_points(3, cls.kind, n, d)
        require_identifiable(n, d)
        runs = Allocation(n, d)
        columns = _over_training_columns(runs)
        eta, (a, b) = fit_separable(lambda eta: columns(eta)[:, 1:], reducible, *_EXPONENTS)
        _warn_of_bounds(a=a, b=b)
        return cls(irreducible=irreducible, a=float(a), b=float(b), eta=eta, multipliers=_span(runs.multiplier))

    @classmethod
    def fit_each(cls, targets: Floats, **columns: Any) -> list[Self]:
        """The laws of the same runs with other losses, (laws, runs), at once where the method is `varpro`."""
        if columns.get("method", "varpro") != "varpro":
            return super().fit_each(targets, **columns)
        runs = cls._checked(*positive_columns(params=columns["params"], tokens=columns["tokens"]))
        positive_columns(loss=targets.ravel())
        etas, coefficients = fit_separable_each(_over_training_columns(runs), targets, *_EXPONENTS)
        span = _span(runs.multiplier)
        return [
            cls(irreducible=float(e), a=float(a), b=float(b), eta=float(eta), multipliers=span)
            for eta, (e, a, b) in zip(etas, coefficients, strict=True)
        ]

    @classmethod
    def _checked(cls, params: Floats, tokens: Floats) -> Allocation:
        require_points(4, cls.kind, params, tokens)
        require_identifiable(params, tokens)
        return Allocation(params, tokens)

    def offset(self, multiplier: npt.ArrayLike) -> Floats:
        """The factor of C^-eta at a multiplier, `a M^eta + b M^-eta`."""
        m = np.asarray(multiplier, dtype=np.float64)
        return self.a * m**self.eta + self.b * m**-self.eta

    def optimal_multiplier(self) -> float:
        """Tokens per parameter of the lowest loss at any compute, `(b / a)^(1 / (2 eta))`.

        Raises:
            PerplabError: a or b is zero, so that no multiplier is best.
        """
        if not (self.a > 0 and self.b > 0):
            raise PerplabError(f"no multiplier is best where a = {self.a:g} and b = {self.b:g}", "fit other runs")
        best = float((self.b / self.a) ** (1 / (2 * self.eta)))
        self.warn_outside(best)
        return best

    def _reducible(self, spent: Allocation) -> Floats:
        return self.offset(spent.multiplier) * spent.compute**-self.eta


@dataclass(frozen=True, kw_only=True)
class PowerLaw(LossLaw):
    """`L(C) = irreducible + scale C^-eta`, for runs of one multiplier; it knows nothing of other multipliers.

    Attributes:
        scale: loss that compute removes, at C = 1.
        eta: exponent of compute.
    """

    scale: float
    eta: float

    kind: ClassVar[str] = "power"

    @classmethod
    def fit(cls, params: npt.ArrayLike, tokens: npt.ArrayLike, loss: npt.ArrayLike) -> Self:
        """Fit the law by variable projection; arguments as for `OverTrainingLaw.fit`.

        Raises:
            PerplabError: a value is not positive and finite, the runs differ in multiplier, or fewer than three differ
                in compute.
        """
        n, d, losses = positive_columns(params=params, tokens=tokens, loss=loss)
        runs = Allocation(n, d)
        require_points(3, cls.kind, runs.compute)
        if varies(runs.multiplier):
            low, high = _span(runs.multiplier)
            raise PerplabError(f"multipliers from {low:.4g} to {high:.4g}", "a power law is of one multiplier: fit one")
        eta, coefficients = fit_separable(
            lambda eta: np.column_stack([np.ones_like(losses), runs.compute**-eta]), losses, *_EXPONENTS
        )
        irreducible, scale = map(float, coefficients)
        _warn_of_bounds(irreducible=irreducible, scale=scale)
        return cls(irreducible=irreducible, scale=scale, eta=eta, multipliers=_span(runs.multiplier))

    def _reducible(self, spent: Allocation) -> Floats:
        return self.scale * spent.compute**-self.eta


def _over_training_columns(runs: Allocation) -> Callable[[npt.ArrayLike], Floats]:
    """From eta, or etas of shape (..., 1), to the design matrix of E, a and b, (..., runs, 3)."""

    def columns(eta: npt.ArrayLike) -> Floats:
        exponent = np.asarray(eta)
        ratio, decay = runs.multiplier**exponent, runs.compute**-exponent
        return np.stack([np.ones_like(decay), ratio * decay, decay / ratio], axis=-1)

    return columns


def _by_projection(runs: Allocation, loss: Floats) -> tuple[float, float, float, float]:
    eta, (irreducible, a, b) = fit_separable(_over_training_columns(runs), loss, *_EXPONENTS)
    return float(irreducible), float(a), float(b), eta


def _by_levenberg_marquardt(runs: Allocation, loss: Floats) -> tuple[float, float, float, float]:
    """Squares in the place of the coefficients keep them at zero or above."""
    typical_compute, typical_multiplier = (np.exp(np.log(x).mean()) for x in (runs.compute, runs.multiplier))
    log_compute, log_multiplier = np.log(runs.compute / typical_compute), np.log(runs.multiplier / typical_multiplier)

    def residuals(parameters: Floats) -> Floats:
        root_e, root_a, root_b, eta = parameters
        many = root_a**2 * np.exp(eta * (log_multiplier - log_compute))
        few = root_b**2 * np.exp(eta * (-log_multiplier - log_compute))
        return np.asarray(root_e**2 + many + few - loss)

    def start(share: float, eta: float) -> list[float]:
        half = np.sqrt((loss.mean() - share * loss.min()) / 2)
        return [np.sqrt(share * loss.min()), half, half, eta]

    ends = [
        optimize.least_squares(residuals, start(share, eta), method="lm", x_scale="jac", **_CONVERGED)
        for share, eta in product((0.05, 0.5, 0.9), (0.05, 0.1, 0.2, 0.4))
    ]
    root_e, root_a, root_b, eta = map(float, min(ends, key=lambda end: end.cost).x)
    a = root_a**2 * (typical_compute / typical_multiplier) ** eta
    b = root_b**2 * (typical_compute * typical_multiplier) ** eta
    return root_e**2, float(a), float(b), eta


def _span(values: Floats) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _warn_of_bounds(**coefficients: float) -> None:
    for name, value in coefficients.items():
        if value == 0:
            warn(f"{name} is at its bound 0: the runs do not have the law's shape")
