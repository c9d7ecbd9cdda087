"""The network of a masked diffusion model: what each masked token may be, given those that are not masked.

Decisions:
- A plain pre-norm bidirectional transformer without any input for time: rotary positions, attention without biases,
  tanh-GELU layers of four times the width. Its output is over real tokens, its input table has one row more, the mask.
- The head starts at zero, so that an untrained model is uniform and its loss is log V exactly.
- Rows may be packed, with `position_ids` that restart where a document begins, or padded. Documents do not see each
  other, and nothing sees padding.
- The head is applied where a caller predicts, which in training is where a token was masked.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput

from perplab.kernels.linear_cross_entropy import IGNORE_INDEX
from perplab.models.decoder import RotaryEmbedding
from perplab.models.diffusion.config import DiffusionConfig
from perplab.models.parts import rotate

Rotary = tuple[Tensor, Tensor]


class BidirectionalAttention(nn.Module):
    """Softmax attention in both directions, without biases."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, rotary: Rotary, visible: Tensor | None) -> Tensor:
        """Mix positions: (batch, length, hidden_size) to the same shape; see `visible_keys`."""
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in self.qkv_proj(hidden_states).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(rotate(query, rotary), rotate(key, rotary), value, attn_mask=visible)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """down(gelu(up(x))), with biases."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix channels: (..., hidden_size) to the same shape."""
        return self.down_proj(F.gelu(self.up_proj(hidden_states), approximate="tanh"))


class DiffusionBlock(nn.Module):
    """Pre-norm residual block: attention, then the feed-forward layer, each followed by dropout."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = BidirectionalAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, rotary: Rotary, visible: Tensor | None) -> Tensor:
        """Map (batch, length, hidden_size) to the same shape."""
        attended = self.self_attn(self.input_layernorm(hidden_states), rotary, visible)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class BidirectionalTransformer(nn.Module):
    """Embeddings, blocks and final norm."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size + 1, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config)
        self.layers = nn.ModuleList(DiffusionBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, inputs_embeds: Tensor, position_ids: Tensor, visible: Tensor | None) -> Tensor:
        """Map (batch, length, hidden_size) to the states after the final norm."""
        cos, sin = self.rotary_emb(position_ids)
        rotary = cos.to(inputs_embeds.dtype), sin.to(inputs_embeds.dtype)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotary, visible)
        return self.norm(hidden_states)


class DiffusionModel(PreTrainedModel):
    """The network with its head, under the masked-LM contract of `transformers`."""

    config_class = DiffusionConfig
    config: DiffusionConfig
    base_model_prefix = "model"
    _no_split_modules = ["DiffusionBlock"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.model = BidirectionalTransformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.lm_head:
            init.zeros_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), Tensor):
            init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        predicted: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Predict every position, or some.

        Args:
            input_ids: (batch, length) token ids, `config.mask_token_id` where a token is hidden.
            attention_mask: (batch, length), 0 for padding.
            position_ids: (batch, length); a 0 opens a new document.
            inputs_embeds: (batch, length, hidden_size), in the place of `input_ids`.
            labels: (batch, length) of what is hidden; -100 is not scored.
            predicted: (batch, length) booleans: where logits are wanted.

        Returns:
            Logits over real tokens, (batch, length, vocab_size), or (predicted positions, vocab_size).
        """
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        batch, length = inputs_embeds.shape[:2]
        visible = None
        if attention_mask is not None or position_ids is not None:
            visible = visible_keys(position_ids, attention_mask)
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        hidden_states = self.model(inputs_embeds, position_ids.expand(batch, -1), visible)
        logits = self.lm_head(hidden_states if predicted is None else hidden_states[predicted])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        return MaskedLMOutput(loss=loss, logits=logits)


def visible_keys(position_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees: (batch, 1, length, length) booleans; None where all see all.

    Args:
        position_ids: (batch, length), 0 where a document begins; None for one document a row.
        attention_mask: (batch, length), 0 for padding, which sees padding alone; None for no padding.
    """
    if position_ids is None:
        document = attention_mask.long()  # type: ignore[union-attr]
    else:
        document = (position_ids == 0).cumsum(dim=-1) + 1
        document = document if attention_mask is None else document * attention_mask
    if bool((document == document[:, :1]).all()):
        return None
    return (document[:, :, None] == document[:, None, :])[:, None]


AutoConfig.register(DiffusionConfig.model_type, DiffusionConfig)
AutoModelForMaskedLM.register(DiffusionConfig, DiffusionModel)
