"""The decoder everything here trains: one stack of blocks whose mixers are chosen a layer at a time.

Decisions:
- Llama's layout key for key: a decoder of plain parts is a stock Llama (with query and key norms, a stock Qwen3), and
  `perplab.models.stock` makes one of the other.
- Packed rows are the normal input: `position_ids` that restart at 0 separate documents, and attention never crosses.
- Training calls `token_losses`, which never holds the logits; `forward` keeps the causal-LM contract of `transformers`.
- The model does not know about precision, compilation or distribution. They are applied from outside.
"""

from dataclasses import field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from perplab.errors import PerplabError
from perplab.kernels import LinearCrossEntropy, linear_cross_entropy, softmax_gradient
from perplab.kernels.linear_cross_entropy import SoftmaxGradient
from perplab.models.parts import CHANNEL_MIXERS, TOKEN_MIXERS, RMSNorm, SequenceContext


class DecoderConfig(PreTrainedConfig):
    """Shape of a decoder.

    Raises:
        PerplabError: an unknown key, an unknown mixer, or sizes that do not divide.
    """

    model_type = "perplab_decoder"

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 0  # 0: as many as attention heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    qk_norm: bool = False  # RMS norm on the queries and keys of each head
    token_mixers: list[str] = field(default_factory=list)  # one name a layer; empty: "softmax" everywhere
    channel_mixers: list[str] = field(default_factory=list)  # one name a layer; empty: "swiglu" everywhere
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what follows from other fields, and refuse what does not fit."""
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        divided = not self.head_dim
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.token_mixers = self.token_mixers or ["softmax"] * self.num_hidden_layers
        self.channel_mixers = self.channel_mixers or ["swiglu"] * self.num_hidden_layers
        known = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("_") or key in _SHARED_KEYS}
        if kwargs:
            raise PerplabError(
                f"unknown key {min(kwargs)!r} in a {self.model_type} config",
                "remove it, or correct it to a field of DecoderConfig",
            )
        super().__post_init__(**known)
        self._validate_mixers()
        self._validate_heads(divided=divided)

    def _validate_heads(self, *, divided: bool) -> None:
        if divided and self.hidden_size % self.num_attention_heads:
            raise PerplabError(
                f"hidden_size {self.hidden_size} does not divide over {self.num_attention_heads} attention heads",
                "choose a multiple, or give head_dim",
            )
        if self.head_dim % 2:
            raise PerplabError(f"head_dim {self.head_dim} is odd", "choose an even one, as rotary positions turn pairs")
        if self.num_attention_heads % self.num_key_value_heads:
            raise PerplabError(
                f"{self.num_attention_heads} attention heads over {self.num_key_value_heads} key-value heads",
                "choose a number of key-value heads that divides the number of attention heads",
            )

    def _validate_mixers(self) -> None:
        for chosen, registry in (("token_mixers", TOKEN_MIXERS), ("channel_mixers", CHANNEL_MIXERS)):
            names = getattr(self, chosen)
            if len(names) != self.num_hidden_layers:
                raise PerplabError(
                    f"{chosen} names {len(names)} layers of {self.num_hidden_layers}", "give one name a layer"
                )
            for name in names:
                if name not in registry:
                    raise PerplabError(f"unknown name {name!r} in {chosen}", f"choose from {', '.join(registry)}")


_SHARED_KEYS = {"model_type", "torch_dtype", "transformers_version", "name_or_path", "attn_implementation"}


class Block(nn.Module):
    """Pre-norm residual block: a token mixer, then a channel mixer."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = TOKEN_MIXERS[config.token_mixers[layer_index]](config, layer_index)
        self.mlp = CHANNEL_MIXERS[config.channel_mixers[layer_index]](config, layer_index)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """Map (batch, length, hidden_size) to the same shape."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), context)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class RotaryEmbedding(nn.Module):
    """Angles of rotary positions: position * theta^(-2i / head_dim), in float32."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.theta = config.rope_theta
        self.head_dim = config.head_dim

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (batch, length, head_dim) of (batch, length) positions."""
        exponent = torch.arange(0, self.head_dim, 2, device=position_ids.device, dtype=torch.float32) / self.head_dim
        angles = position_ids[..., None].float() * (1.0 / self.theta**exponent)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class Decoder(nn.Module):
    """Embeddings, blocks and final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the blocks.

        Returns:
            The hidden states after the final norm (batch, length, hidden_size), and the input of every block.
        """
        cos, sin = self.rotary_emb(position_ids)
        context = SequenceContext(
            position_ids, (cos.to(inputs_embeds.dtype), sin.to(inputs_embeds.dtype)), attention_mask, cache
        )
        hidden_states, inputs = inputs_embeds, []
        for layer in self.layers:
            inputs.append(hidden_states)
            hidden_states = layer(hidden_states, context)
        return self.norm(hidden_states), tuple(inputs)


class DecoderForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder with a language-model head, under the causal-LM contract of `transformers`."""

    config_class = DecoderConfig
    config: DecoderConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """The causal-LM contract.

        Args:
            input_ids: (batch, length) token ids.
            attention_mask: (batch, cached + length), 0 for padding.
            position_ids: (batch, length). Without cache and padding, a 0 opens a new document.
            past_key_values: cache of the tokens already seen.
            inputs_embeds: (batch, length, hidden_size), in the place of `input_ids`.
            labels: (batch, length), aligned with `input_ids` and shifted here; -100 is not scored.
            use_cache: return a cache; by default only outside training and without labels.
            logits_to_keep: compute logits for the last so many positions, or for these indices; 0 for all.
            output_hidden_states: return the input of each block and the final normed states.
        """
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        use_cache = (self.config.use_cache and not self.training and labels is None) if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        batch, length = inputs_embeds.shape[:2]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]
        position_ids = position_ids.expand(batch, -1)
        mask = _cache_mask(attention_mask, batch, length, past, inputs_embeds.device)
        hidden_states, block_inputs = self.model(inputs_embeds, position_ids, mask, past_key_values)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        kept = hidden_states if isinstance(keep, int) else hidden_states[:, keep]
        logits = self.lm_head(kept)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=(*block_inputs, hidden_states) if output_hidden_states else None,
        )

    def token_losses(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        z_loss: float = 0.0,
        chunk_step: SoftmaxGradient = softmax_gradient,
    ) -> LinearCrossEntropy:
        """Loss of packed rows without their logits.

        Args:
            input_ids: (batch, length).
            position_ids: (batch, length); 0 opens a document.
            labels: (batch, length), already shifted: what follows each input; -100 is not scored.
            z_loss: see `perplab.kernels.linear_cross_entropy`.
            chunk_step: see `perplab.kernels.linear_cross_entropy`.

        Returns:
            The summed loss, and the cost of each label in nats, flattened to (batch * length,).
        """
        hidden_states, _ = self.model(self.model.embed_tokens(input_ids), position_ids)
        return linear_cross_entropy(
            hidden_states.flatten(0, 1), self.lm_head.weight, labels.flatten(), z_loss, chunk_step
        )


def _cache_mask(
    attention_mask: Tensor | None, batch: int, length: int, past: int, device: torch.device
) -> Tensor | None:
    """The (batch, 1, length, past + length) mask for padding or a filled cache; None where packed attention serves."""
    if past == 0 and (attention_mask is None or bool(attention_mask.all())):
        return None
    mask = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past).expand(batch, 1, -1, -1)
    if attention_mask is None:
        return mask
    itself = torch.eye(length, past + length, dtype=torch.bool, device=device).roll(past, dims=1)
    return (mask & attention_mask[:, None, None, :].bool()) | itself


AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM)
