"""The parts a decoder block is made of: norms, token mixers, channel mixers.

Decisions:
- A token mixer moves information between positions, a channel mixer works at each position alone. A decoder chooses
  one of each per layer by name; a new mixer is one class and one line in `TOKEN_MIXERS` or `CHANNEL_MIXERS`.
- A mixer is built from `(config, layer_index)`. A token mixer is called with `(hidden_states, context)`, a channel
  mixer with `(hidden_states)`; both return a tensor shaped as `hidden_states`, (batch, length, hidden_size).
- What a mixer may need beyond the hidden states (positions, rotary angles, padding, the cache) is one
  `SequenceContext`.
- Parameter names are Llama's, so that a decoder of plain parts is a Llama checkpoint key for key.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.kernels import packed_attention

if TYPE_CHECKING:
    from perplab.models.decoder import DecoderConfig


class SequenceContext(NamedTuple):
    """What every layer of one forward pass shares."""

    position_ids: Tensor
    """(batch, length). Where no mask is given, a 0 opens a document that sees nothing before it."""
    rotary: tuple[Tensor, Tensor]
    """Cosines and sines, each (batch, length, head_dim)."""
    attention_mask: Tensor | None
    """(batch, 1, length, keys) booleans, true where a query may look; None for packed documents without a cache."""
    cache: Any
    """A `transformers` cache, or None."""


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


class SoftmaxAttention(nn.Module):
    """Grouped-query softmax attention with rotary positions, and optionally a norm on queries and keys."""

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """Mix positions; see the module's decisions for shapes."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        query, key = rotate(query, context.rotary), rotate(key, context.rotary)
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer_index)
        if context.attention_mask is None:
            mixed = packed_attention(query, key, value, context.position_ids)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=context.attention_mask, enable_gqa=query.shape[1] != key.shape[1]
            )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix channels; see the module's decisions for shapes."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


Mixer = Callable[["DecoderConfig", int], nn.Module]

TOKEN_MIXERS: dict[str, Mixer] = {"softmax": SoftmaxAttention}
CHANNEL_MIXERS: dict[str, Mixer] = {"swiglu": SwiGLU}
