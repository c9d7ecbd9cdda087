"""The decoder everything here trains: one stack of blocks whose mixers are chosen a layer at a time.

Decisions:
- Llama's layout key for key: a decoder of plain parts is a stock Llama (with query and key norms, a stock Qwen3), and
  `perplab.models.stock` makes one of the other.
- Packed rows are the normal input: `position_ids` that restart at 0 separate documents, and attention never crosses.
- Training calls `token_losses`, which never holds the logits; `forward` keeps the causal-LM contract of `transformers`.
- The model does not know about precision, compilation or distribution. They are applied from outside.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from perplab.kernels import LinearCrossEntropy, linear_cross_entropy, softmax_gradient
from perplab.kernels.linear_cross_entropy import SoftmaxGradient
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixer_cache import check_cache, decoder_cache
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.models.ngram_heads import NGramHeads
from perplab.models.parts import CHANNEL_MIXERS, RMSNorm


class Block(nn.Module):
    """Pre-norm residual block: a token mixer, then a channel mixer, then n-gram heads where the config has them."""

    def __init__(self, config: DecoderConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = TOKEN_MIXERS[config.token_mixers[layer_index]](config, layer_index)
        self.mlp = CHANNEL_MIXERS[config.channel_mixers[layer_index]](config, layer_index)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.ngram_heads[layer_index]:
            self.ngram_heads = NGramHeads(config, layer_index)

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """Map (batch, length, hidden_size) to the same shape."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return self.ngram_heads(hidden_states, context) if hasattr(self, "ngram_heads") else hidden_states


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
        if config.position_encoding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position_encoding == "rotary" and config.attends:
            self.rotary_emb = RotaryEmbedding(config)

    def forward(self, inputs_embeds: Tensor, context: SequenceContext) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the blocks.

        Args:
            inputs_embeds: (batch, length, hidden_size).
            context: of the sequences, still without rotary angles.

        Returns:
            The hidden states after the final norm (batch, length, hidden_size), and the input of every block.
        """
        hidden_states, inputs = inputs_embeds, []
        if hasattr(self, "embed_positions"):
            hidden_states = hidden_states + self.embed_positions(context.position_ids)
        elif hasattr(self, "rotary_emb"):
            cos, sin = self.rotary_emb(context.position_ids)
            context = context._replace(rotary=(cos.to(inputs_embeds.dtype), sin.to(inputs_embeds.dtype)))
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
    _keep_in_fp32_modules_strict = {"phase"}  # noqa: RUF012 (angles in bfloat16 are off by degrees)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Not: `forward` makes the cache that suits the layers."""
        return False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw a module's weights, also those of parts that transformers does not know."""
        super()._init_weights(module)
        initialize = getattr(module, "initialize", None)
        if initialize is not None:
            initialize()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
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
            past_key_values: cache of the tokens already seen, by a decoder of this config.
            inputs_embeds: (batch, length, hidden_size), in the place of `input_ids`.
            labels: (batch, length), aligned with `input_ids` and shifted here; -100 is not scored.
            use_cache: return a cache; by default only outside training and without labels.
            logits_to_keep: compute logits for the last so many positions, or for these indices; 0 for all.
            output_hidden_states: return the input of each block and the final normed states.

        Raises:
            PerplabError: the cache is of a decoder of another config.
        """
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        use_cache = (self.config.use_cache and not self.training and labels is None) if use_cache is None else use_cache
        if past_key_values is not None:
            check_cache(past_key_values, self.config)
        elif use_cache:
            past_key_values = decoder_cache(self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        batch, length = inputs_embeds.shape[:2]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        alone = attention_mask is not None or past > 0
        context = SequenceContext(
            position_ids=position_ids.expand(batch, -1),
            rotary=None,
            packed=not alone,
            attention_mask=_mask(attention_mask, batch, length, past, inputs_embeds.device)
            if alone and self.config.attends
            else None,
            real=None if attention_mask is None else attention_mask[:, -length:].bool(),
            cache=past_key_values,
            input_ids=input_ids,
        )
        hidden_states, block_inputs = self.model(inputs_embeds, context)
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
        context = SequenceContext(position_ids, None, True, None, None, None, input_ids)
        hidden_states, _ = self.model(self.model.embed_tokens(input_ids), context)
        return linear_cross_entropy(
            hidden_states.flatten(0, 1), self.lm_head.weight, labels.flatten(), z_loss, chunk_step
        )


def _mask(attention_mask: Tensor | None, batch: int, length: int, past: int, device: torch.device) -> Tensor:
    """The (batch, 1, length, past + length) mask of padded rows, or of rows that continue a cache."""
    mask = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past).expand(batch, 1, -1, -1)
    if attention_mask is None:
        return mask
    itself = torch.eye(length, past + length, dtype=torch.bool, device=device).roll(past, dims=1)
    return (mask & attention_mask[:, None, None, :].bool()) | itself


AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM)
