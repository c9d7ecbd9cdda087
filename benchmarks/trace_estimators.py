"""Estimators of the trace of curvature: draws a second, variance, and cost against exact matrices.

A tiny language model of tanh units has both matrices in full: its Hessian, and its Gauss-Newton matrix by autograd.
Every estimator is asked for the same number of draws; what it found stands beside the exact trace of its own matrix, in
standard errors. `relative sd` is the spread of one draw over the whole text as a share of the trace, `passes` the
forward and backward passes of one draw as the package counts them, and `measured passes` the time of a draw in times of
a plain forward and backward pass. The last column weighs both: the passes that a standard error of 1 % costs.
"""

import math
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from measuring import interleaved
from perplab.laws.flatness import Batch, TraceMethod, hessian_trace

METHODS: tuple[TraceMethod, ...] = ("fisher", "fisher-batch", "hutchinson", "hutchinson-gaussian", "hutch++")
VOCABULARY, WIDTH = 24, 12
ROWS, LENGTH = 32, 8
BATCHES = 4


class TinyModel(nn.Module):
    """A token and the mean of those before it, through a hidden layer, to the next."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        """Logits (rows, length, vocabulary)."""
        vectors = self.embedding(input_ids)
        seen = vectors.cumsum(dim=1) / torch.arange(1, vectors.shape[1] + 1)[:, None]
        hidden = torch.tanh(self.hidden(torch.cat((vectors, seen), dim=-1)))
        return SimpleNamespace(logits=self.head(hidden))


def measure(quick: bool) -> list[dict[str, Any]]:
    model, text = TinyModel(), batches()
    gauss_newton, hessian = exact_traces(model, text)
    samples = 12 if quick else 120
    plain = plain_pass_seconds(model, text)
    rows = []
    for method in METHODS:
        start = time.perf_counter()
        found = hessian_trace(model, text, method, samples=samples)
        seconds = time.perf_counter() - start
        draws = samples - 2 * (samples // 3) if method == "hutch++" else samples
        exact = gauss_newton if method.startswith("fisher") else hessian
        error = found.standard_error or math.nan
        relative = error * math.sqrt(draws) / abs(exact)
        rows.append(
            {
                "estimator": method,
                "exact": exact,
                "found": found.value,
                "errors off": (found.value - exact) / error,
                "relative sd": relative,
                "draws/s": samples / seconds,
                "passes": found.passes / samples,
                "measured passes": seconds / samples / plain,
                "passes for 1 %": found.passes * (error / abs(exact) / 0.01) ** 2,
            }
        )
    return rows


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    return [Batch.of_rows(rows) for rows in ids.chunk(BATCHES)]


def exact_traces(model: nn.Module, text: list[Batch]) -> tuple[float, float]:
    """Trace of the Gauss-Newton matrix and of the Hessian, by `torch.func`."""
    named = dict(model.named_parameters())
    sizes = [tensor.numel() for tensor in named.values()]

    def logits(vector: Tensor, input_ids: Tensor) -> Tensor:
        parts = [part.view_as(tensor) for part, tensor in zip(vector.split(sizes), named.values(), strict=True)]
        weights = dict(zip(named, parts, strict=True))
        keywords = {"input_ids": input_ids, "use_cache": False}
        return torch.func.functional_call(model, weights, (), keywords).logits.flatten(0, 1)

    vector = torch.cat([tensor.detach().flatten() for tensor in named.values()])
    gauss_newton = hessian = 0.0
    for batch in text:

        def loss(given: Tensor, batch: Batch = batch) -> Tensor:
            return nn.functional.cross_entropy(logits(given, batch.input_ids), batch.labels.flatten())

        hessian += float(torch.func.hessian(loss)(vector).trace()) / len(text)
        jacobian = torch.func.jacrev(lambda given, batch=batch: logits(given, batch.input_ids))(vector)
        p = torch.softmax(logits(vector, batch.input_ids), dim=-1)
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        gauss_newton += float(torch.einsum("nvp,nvw,nwp->", jacobian, spread, jacobian)) / len(p) / len(text)
    return gauss_newton, hessian


def plain_pass_seconds(model: nn.Module, text: list[Batch]) -> float:
    """Median time of a forward and backward pass over the whole text."""
    parameters = list(model.parameters())

    def run() -> None:
        for batch in text:
            logits = model(batch.input_ids, use_cache=False).logits.flatten(0, 1)
            torch.autograd.grad(nn.functional.cross_entropy(logits, batch.labels.flatten()), parameters)

    return interleaved({"plain": run}, 20, warm_up=3)["plain"].median
