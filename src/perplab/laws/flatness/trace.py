"""The trace of the curvature of a model's loss: how flat the minimum is in which it sits.

| method | matrix | how |
|---|---|---|
| `fisher` | Gauss-Newton | labels drawn from the model, a backward pass a row |
| `fisher-batch` | Gauss-Newton | the same with a backward pass a batch: cheaper, and noisier |
| `hutchinson` | Hessian | probes of -1 and 1, double backward |
| `hutchinson-gaussian` | Hessian | normal probes, double backward |
| `hutch++` | Hessian | largest eigenvectors exactly, probes of the rest |
| `exact` | Hessian | every diagonal entry; small models |

The trace depends on the parameterisation: two models compare within one architecture and one tokenizer only. `widen`
brings a smaller model into a larger architecture first.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.laws.flatness.batches import Batch, predictions
from perplab.laws.flatness.differentiation import ParameterFilter, Parameters, differentiable
from perplab.laws.flatness.estimate import TraceEstimate, estimate
from perplab.laws.flatness.fisher import fisher_draws, passes_of_draws
from perplab.laws.flatness.hessian import PROBES, HessianProduct, Watch, hutch_plus_plus, passes_of_forms

TraceMethod = Literal["fisher", "fisher-batch", "hutchinson", "hutchinson-gaussian", "hutch++", "exact"]
LARGEST_EXACT = 2_000
"""Parameters up to which every diagonal entry is computed."""


def hessian_trace(
    model: nn.Module,
    batches: Sequence[Batch],
    method: TraceMethod = "fisher",
    *,
    samples: int = 8,
    parameters: ParameterFilter | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> TraceEstimate:
    """Estimate the trace of the curvature of the mean loss of `model` over all labels of `batches`.

    Args:
        model: a causal language model in float32 or wider: called with `input_ids`, and `position_ids` where a batch
            has them, it gives `logits`. It is left as it was.
        batches: the text.
        method: which matrix, and how; see the module.
        samples: label draws of each row or batch, probes of each batch, or products in all for `hutch++`; `exact` has
            none.
        parameters: which parameters to look at, by name; None for all.
        seed: of labels and probes.
        watch: told of rows, batches or products done.

    Raises:
        PerplabError: the method is unknown, there is no sample, no parameter or nothing to predict, the weights are
            quantised or narrower than float32, the vocabulary has one token, the model is too large for `exact` or
            cannot be differentiated twice, or the curvature is not finite.
    """
    if method not in get_args(TraceMethod):
        raise PerplabError(f"unknown method {method!r} of a trace", f"choose from {', '.join(get_args(TraceMethod))}")
    if samples < 1:
        raise PerplabError(f"a trace from {samples} samples", "give 1 or more")
    chosen, count = Parameters.of(model, parameters), predictions(batches)
    if method == "exact" and len(chosen) > LARGEST_EXACT:
        raise PerplabError(
            f"an exact trace over {len(chosen):,} parameters",
            f"choose {LARGEST_EXACT:,} parameters or fewer, or the method hutchinson",
        )
    generator = torch.Generator(chosen.device).manual_seed(seed)
    with differentiable(model, chosen):
        if method in ("fisher", "fisher-batch"):
            groups = [row for batch in batches for row in batch.rows()] if method == "fisher" else batches
            labelled = _watched([group for group in groups if group.predicted.any()], watch)
            draws = fisher_draws(model, chosen, labelled, count, samples, generator)
            return estimate(chosen.names, draws, passes_of_draws(samples))
        product = HessianProduct(model, chosen, batches, count)
        if method == "hutch++":
            sketched = hutch_plus_plus(product, samples, generator, watch)
            return estimate(chosen.names, [sketched], product.passes)
        if method == "exact":
            diagonals = (product.diagonal(batch) for batch in _watched(batches, watch))
            return estimate(chosen.names, diagonals, passes_of_forms(len(chosen)), exact=True)
        probe = PROBES[method]
        forms = (
            product.quadratic_forms(batch, (probe(chosen, generator) for _ in range(samples)))
            for batch in _watched(batches, watch)
        )
        return estimate(chosen.names, forms, passes_of_forms(samples))


def _watched(groups: Sequence[Batch], watch: Watch | None) -> Iterator[Batch]:
    for done, group in enumerate(groups, start=1):
        yield group
        if watch is not None:
            watch(done, len(groups))
