"""How much is masked at what time: total noise, its rate, what survives, and the way from a mask rate back to a time.

Time runs from 0, clean, to 1, all masked but for a last bit. A token survives to time t with probability
alpha(t) = exp(-total(t)); the mask rate is lambda(t) = 1 - alpha(t). All functions take and give float64 tensors.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A noise schedule."""

    def total(self, t: Tensor) -> Tensor:
        """Noise accumulated until `t`."""

    def rate(self, t: Tensor) -> Tensor:
        """Noise added at `t`: the derivative of `total`."""

    def alpha(self, t: Tensor) -> Tensor:
        """Share of tokens that are not masked at `t`."""

    def lambda_to_t(self, mask_rate: Tensor) -> Tensor:
        """The time at which this share of tokens is masked."""


@dataclass(frozen=True)
class LogLinear:
    """The mask rate grows linearly: lambda(t) = (1 - eps) t."""

    eps: float = 1e-3

    def total(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return (1 - self.eps) / (1 - (1 - self.eps) * t)

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - (1 - self.eps) * t

    def lambda_to_t(self, mask_rate: Tensor) -> Tensor:
        """See `Schedule`."""
        return mask_rate / (1 - self.eps)


@dataclass(frozen=True)
class Geometric:
    """Total noise grows geometrically: smallest^(1 - t) * largest^t."""

    smallest: float = 1e-4
    largest: float = 20.0

    def total(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.smallest ** (1 - t) * self.largest**t

    def rate(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.total(t) * math.log(self.largest / self.smallest)

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.exp(-self.total(t))

    def lambda_to_t(self, mask_rate: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.log(-torch.log1p(-mask_rate) / self.smallest) / math.log(self.largest / self.smallest)


@dataclass(frozen=True)
class Cosine:
    """The mask rate is a quarter of a sine: lambda(t) = (1 - eps) sin(pi t / 2)."""

    eps: float = 1e-3

    def total(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return -torch.log(self.alpha(t))

    def rate(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return (1 - self.eps) * (math.pi / 2) * torch.cos(math.pi / 2 * t) / self.alpha(t)

    def alpha(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return 1 - (1 - self.eps) * torch.sin(math.pi / 2 * t)

    def lambda_to_t(self, mask_rate: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.asin(mask_rate / (1 - self.eps)) * (2 / math.pi)
