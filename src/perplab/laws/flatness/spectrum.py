"""The largest eigenvalues of the Hessian of the loss: how sharply it bends in its sharpest directions.

Lanczos by ARPACK (`scipy.sparse.linalg.eigsh`), which asks for products with vectors alone. For a symmetric matrix an
eigenvalue lies within |H v - value v| of `value` for any unit vector v, so each comes with an interval that is certain
but for rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import nn

from perplab.errors import PerplabError
from perplab.laws.flatness.batches import Batch, predictions
from perplab.laws.flatness.differentiation import ParameterFilter, Parameters, differentiable
from perplab.laws.flatness.estimate import Floats
from perplab.laws.flatness.hessian import HessianProduct, Watch
from perplab.scoring.bootstrap import Interval

TOLERANCE = 1e-2
"""Relative accuracy at which an eigenvalue is taken for found; what was reached is in its interval."""
_RESTARTS = 100
_FEWEST_VECTORS = 10


@dataclass(frozen=True)
class Spectrum:
    """The largest eigenvalues of a Hessian.

    Attributes:
        values: from the largest down, in nats per squared unit of parameter.
        intervals: for each value an interval that holds an eigenvalue.
        passes: what they cost, in forward and backward passes over the whole text.
    """

    values: tuple[float, ...]
    intervals: tuple[Interval, ...]
    passes: float


def top_eigenvalues(
    model: nn.Module,
    batches: Sequence[Batch],
    count: int = 1,
    *,
    parameters: ParameterFilter | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Spectrum:
    """The `count` largest eigenvalues of the Hessian of the mean loss over all labels of `batches`.

    Args:
        model: as for `hessian_trace`.
        batches: the text.
        count: how many.
        parameters: which parameters to look at, by name; None for all.
        seed: of the first vector.
        watch: told of products done, and how many it takes at least.

    Raises:
        PerplabError: as for `hessian_trace`, there are not more parameters than `count`, or the eigenvalues are too
            close to be told apart.
    """
    chosen, number = Parameters.of(model, parameters), predictions(batches)
    if not 0 < count < len(chosen):
        raise PerplabError(
            f"{count} eigenvalues over {len(chosen):,} parameters",
            "give 1 or more, below the number of parameters",
        )
    with differentiable(model, chosen):
        product = HessianProduct(model, chosen, batches, number)
        basis = min(max(2 * count + 1, _FEWEST_VECTORS), len(chosen))

        def multiply(vector: Floats) -> Floats:
            given = torch.from_numpy(vector.ravel()).to(chosen.device, chosen.dtype)
            result: Floats = product(given).cpu().double().numpy()
            if watch is not None:
                watch(product.products, max(product.products, basis + count))
            return result

        operator = LinearOperator((len(chosen),) * 2, matvec=multiply, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(len(chosen))
        try:
            values, vectors = eigsh(operator, count, which="LA", v0=start, ncv=basis, tol=TOLERANCE, maxiter=_RESTARTS)
        except ArpackError:
            raise PerplabError(
                f"the {count} largest eigenvalues do not come apart", "ask for fewer, or choose fewer parameters"
            ) from None
        order = np.argsort(-values)
        residuals = [np.linalg.norm(multiply(vectors[:, at]) - values[at] * vectors[:, at]) for at in order]
    found = [float(values[at]) for at in order]
    intervals = [Interval(value - float(r), value + float(r), 1.0) for value, r in zip(found, residuals, strict=True)]
    return Spectrum(tuple(found), tuple(intervals), product.passes)
