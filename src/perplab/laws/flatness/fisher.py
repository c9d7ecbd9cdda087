"""The trace of the Fisher information by labels that the model draws itself.

For labels y drawn from the model, E |gradient of log p(y)|^2 is the trace of the Fisher information, which for softmax
outputs is the trace of the Gauss-Newton matrix at any parameters. It equals the trace of the Hessian where the model is
the distribution of its data; away from there the two differ. Labels of the data in place of drawn ones give neither.

- Labels are drawn independently given the inputs, so in the squared gradient of a sum of predictions the products of
  different predictions have mean 0: one backward pass serves a group of predictions. Small groups have less variance,
  large ones less overhead; the sum is divided by the number of predictions once.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from perplab.laws.flatness.batches import Batch
from perplab.laws.flatness.differentiation import Parameters, predicted_logits
from perplab.laws.flatness.estimate import Floats


def fisher_draws(
    model: nn.Module,
    parameters: Parameters,
    groups: Iterable[Batch],
    predictions: int,
    samples: int,
    generator: torch.Generator,
) -> Iterator[Floats]:
    """For each group, draws of what each parameter adds to the trace, (samples, parameters).

    Args:
        model: differentiable in `parameters`.
        parameters: whose trace.
        groups: rows whose labels are drawn together; each has a label.
        predictions: labels of all groups.
        samples: draws of the labels of a group.
        generator: on the device of the model.
    """
    for group in groups:
        logits, _ = predicted_logits(model, group)
        probabilities = torch.softmax(logits.detach().double(), dim=-1)
        draws = []
        for draw in range(samples):
            labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradient = parameters.gradient(loss, retain_graph=draw < samples - 1)
            draws.append(parameters.sums(gradient.double().square()).numpy())
        yield np.stack(draws) / predictions


def passes_of_draws(samples: int) -> float:
    """Forward and backward passes over the text: one forward pass, a third of a pass, serves all draws."""
    return (1 + 2 * samples) / 3
