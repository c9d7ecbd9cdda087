"""The Hessian of the mean loss, known by its products with vectors.

- A product is the gradient of (gradient . vector): a backward pass through the graph of a backward pass. It costs the
  forward and backward pass that make the graph, and two passes more.
- Probes of different batches are drawn apart, which lowers the variance of the sum; one graph serves all probes of a
  batch.
- Probes with entries of -1 and 1 (Rademacher) have the smaller variance, 2 (|H|^2 - sum of squares of the diagonal)
  against 2 |H|^2 for Gaussian ones, and are exact for a diagonal matrix.
- The exact trace is the same sum over the coordinate vectors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from perplab.laws.flatness.batches import Batch
from perplab.laws.flatness.differentiation import Parameters, costs
from perplab.laws.flatness.estimate import Floats

Watch = Callable[[int, int], None]
"""Told how much is done, and of how much."""


def rademacher(parameters: Parameters, generator: torch.Generator) -> Tensor:
    """A random vector of -1 and 1, (parameters,)."""
    device = parameters.device
    signs = torch.randint(0, 2, (len(parameters),), generator=generator, device=device)
    return (2 * signs - 1).to(parameters.dtype)


def gaussian(parameters: Parameters, generator: torch.Generator) -> Tensor:
    """A random vector of standard normal numbers, (parameters,)."""
    dtype, device = parameters.dtype, parameters.device
    return torch.randn(len(parameters), generator=generator, device=device, dtype=dtype)


PROBES = {"hutchinson": rademacher, "hutchinson-gaussian": gaussian}
"""Probes by the method that draws them."""


def passes_of_forms(products: int) -> float:
    """Forward and backward passes over the text that so many products with one graph of it cost."""
    return 1.0 + 2.0 * products


class HessianProduct:
    """The Hessian of the mean loss over all labels of some batches, as a function of a vector.

    Args:
        model: differentiable in `parameters`.
        parameters: in which the second derivatives are.
        batches: the text.
        predictions: labels of all batches.
    """

    def __init__(self, model: nn.Module, parameters: Parameters, batches: Sequence[Batch], predictions: int) -> None:
        self.model, self.parameters, self.batches, self.predictions = model, parameters, batches, predictions
        self.products = 0

    def __call__(self, vector: Tensor) -> Tensor:
        """Hessian times vector, both (parameters,)."""
        self.products += 1
        product = torch.zeros_like(vector)
        for batch in self.batches:
            product += self._product(self._gradient(batch), vector, last=True)
        return product

    @property
    def passes(self) -> float:
        """Forward and backward passes over the text so far."""
        return self.products * passes_of_forms(1)

    def quadratic_forms(self, batch: Batch, probes: Iterable[Tensor]) -> Floats:
        """What each parameter adds to probe^T H probe, for one batch's part of H, (probes, parameters)."""
        gradient = self._gradient(batch)
        forms = [self.parameters.sums(probe * self._product(gradient, probe, last=False)).numpy() for probe in probes]
        return np.stack(forms)

    def diagonal(self, batch: Batch) -> Floats:
        """The trace of one batch's part, by parameter, (1, parameters)."""
        forms: Floats = self.quadratic_forms(batch, _coordinates(self.parameters)).sum(axis=0, keepdims=True)
        return forms

    def _gradient(self, batch: Batch) -> Tensor:
        loss = costs(self.model, batch).sum() / self.predictions
        return self.parameters.gradient(loss, create_graph=True)

    def _product(self, gradient: Tensor, vector: Tensor, *, last: bool) -> Tensor:
        return self.parameters.gradient(gradient @ vector, retain_graph=not last)


def hutch_plus_plus(
    product: HessianProduct, samples: int, generator: torch.Generator, watch: Watch | None = None
) -> Floats:
    """Draws of what each parameter adds to the trace, (draws, parameters), from about `samples` products.

    A third of the products sketch the largest eigenvectors, a third give the trace on them exactly, and Rademacher
    probes of what is left give the rest: the variance is of the tail of the spectrum alone.
    """
    parameters = product.parameters
    third = min(max(1, samples // 3), len(parameters))
    draws = max(1, samples - 2 * third)

    def multiplied(vector: Tensor) -> Tensor:
        result = product(vector)
        if watch is not None:
            watch(product.products, 2 * third + draws)
        return result

    sketch = torch.stack([multiplied(rademacher(parameters, generator)) for _ in range(third)], dim=1)
    basis = torch.linalg.qr(sketch).Q
    known = torch.stack([parameters.sums(vector * multiplied(vector)) for vector in basis.T]).sum(dim=0)
    contributions = []
    for _ in range(draws):
        probe = rademacher(parameters, generator)
        rest = probe - basis @ (basis.T @ probe)
        contributions.append((known + parameters.sums(rest * multiplied(rest))).numpy())
    return np.stack(contributions)


def _coordinates(parameters: Parameters) -> Iterator[Tensor]:
    """The unit vectors, each (parameters,)."""
    dtype, device = parameters.dtype, parameters.device
    for place in range(len(parameters)):
        unit = torch.zeros(len(parameters), dtype=dtype, device=device)
        unit[place] = 1
        yield unit
