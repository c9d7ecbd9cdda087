"""Softmax attention, over all tokens or over a window of them."""

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perplab.kernels import packed_attention
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.token_mixer import CacheLayer, TokenMixer
from perplab.models.parts import RMSNorm, rotate

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig


class SoftmaxAttention(TokenMixer):
    """Grouped-query softmax attention with rotary positions, and optionally a norm on queries and keys."""

    cache_layer: ClassVar[CacheLayer] = "attention"
    sliding_window: int | None = None

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
        """Mix positions: (batch, length, hidden_size) to the same shape."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        return self.o_proj(self.attend(query, key, value, context).transpose(1, 2).flatten(2))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, context: SequenceContext, scale: float | None = None
    ) -> Tensor:
        """Attention of queries over what they may see, after turning queries and keys to their positions.

        Args:
            query: (batch, heads, length, head_dim).
            key: (batch, key_value_heads, length, head_dim).
            value: as `key`.
            context: of the sequences; its cache grows.
            scale: factor on the scores; None for head_dim ** -0.5.

        Returns:
            (batch, heads, length, head_dim).
        """
        if context.rotary is not None:
            query, key = rotate(query, context.rotary), rotate(key, context.rotary)
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer_index)
        if context.attention_mask is None:
            return packed_attention(
                query, key, value, context.position_ids, scale=scale, sliding_window=self.sliding_window
            )
        mask = _seen_keys(context.attention_mask, key.shape[2], self.sliding_window)
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


class SlidingAttention(SoftmaxAttention):
    """Softmax attention in which a token sees the last `config.sliding_window` tokens, itself among them."""

    cache_layer: ClassVar[CacheLayer] = "sliding"

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__(config, layer_index)
        self.sliding_window = config.sliding_window


def _seen_keys(attention_mask: Tensor, keys: int, sliding_window: int | None) -> Tensor:
    """The mask for the last `keys` keys, which are what a cache has kept, inside the window."""
    mask = attention_mask[..., -keys:]
    if sliding_window is None:
        return mask
    length = mask.shape[2]
    query_place = torch.arange(keys - length, keys, device=mask.device)[:, None]
    return mask & (query_place - torch.arange(keys, device=mask.device) < sliding_window)
