"""An exponential moving average of the weights, which is measured and saved in their place.

Early weights are noise that an average with a long memory would carry for thousands of steps, so its decay rises to its
value: min(decay, (1 + step) / (10 + step)).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The running average of a model's trainable parameters.

    Args:
        model: its parameters now are the first average.
        decay: share of the old average that a step keeps, in [0, 1). With 0 the average is the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad] if decay else []
        self._average = [parameter.detach().clone() for parameter in self._trained]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the step of this number, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, parameter in zip(self._average, self._trained, strict=True):
            average.lerp_(parameter, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights while the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def restart(self) -> None:
        """Take the model's weights now as the average."""
        for average, parameter in zip(self._average, self._trained, strict=True):
            average.copy_(parameter)

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, parameter in zip(self._average, self._trained, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
