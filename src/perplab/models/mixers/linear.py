"""Linear attention and RetNet in DeltaNet's layer: what the delta rule is compared with.

Decisions:
- Everything around the state is the same layer, so a comparison is one of rules: here a token adds its value at its
  key, and does not look at what was there.
- RetNet's decay is a constant a head, 1 - 2^(-5 - h) for head h (arXiv 2307.08621). Its rotary positions and its wider
  values are not here.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from perplab.kernels import linear_attention
from perplab.models.mixers.fast_weights import FastWeightMixer, FastWeightOptions


class LinearAttention(FastWeightMixer):
    """A layer of linear attention, without a normaliser."""

    name: ClassVar[str] = "linear"
    options_class: ClassVar[type] = FastWeightOptions

    def decay(self, query: Tensor) -> Tensor | None:
        """Logarithms of the decay, (batch, heads, length) as the first axes of the queries; None for none."""
        return None

    def recur(
        self, hidden_states: Tensor, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, **memory: Any
    ) -> tuple[Tensor, Tensor]:
        """Add to the state, nothing at padding, where it does not decay either."""
        decay = self.decay(query)
        if real is not None:
            value = value * real[:, None, :, None]
            decay = None if decay is None else decay * real[:, None]
        return linear_attention(query, key, value, decay=decay, **memory)


class Retention(LinearAttention):
    """The same with a constant decay a head."""

    name: ClassVar[str] = "retnet"

    def decay(self, query: Tensor) -> Tensor:
        """The constants, for each token."""
        heads = torch.arange(query.shape[1], dtype=torch.float32, device=query.device)
        return torch.log1p(-torch.exp2(-5 - heads))[:, None].expand(query.shape[:3])
