"""The parts of a decoder block that look at one position: norms and channel mixers, and the rotation of positions.

- A channel mixer is built from `(config, layer_index)` and called with hidden states of shape (batch, length,
  hidden_size), which is also what it returns. A new one is a class and a line in `CHANNEL_MIXERS`.
- Parameter names are Llama's, so that a decoder of plain parts is a Llama checkpoint key for key.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, in float32, and scale.

    Args:
        hidden_size: length of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise (..., hidden_size), keeping the dtype."""
        wide = hidden_states if hidden_states.dtype == torch.float64 else hidden_states.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (self.weight * wide.to(hidden_states.dtype)).to(hidden_states.dtype)


def rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: turn each pair (i, i + head_dim / 2) of (batch, heads, length, head_dim) by its angle."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    first, second = states.chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


class SwiGLU(nn.Module):
    """Gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix channels; see the module's docstring for shapes."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


ChannelMixer = Callable[["DecoderConfig", int], nn.Module]

CHANNEL_MIXERS: dict[str, ChannelMixer] = {"swiglu": SwiGLU}
