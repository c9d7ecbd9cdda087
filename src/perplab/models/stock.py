"""Between this package's decoder and the stock classes of `transformers` that compute the same.

A decoder of plain parts has Llama's parameters, name for name; with norms on queries and keys it has Qwen3's, and with
window attention in every layer Mistral's. What is trained here is saved in that form, so it loads in every other tool
without this package. Both directions share the parameters and copy nothing.
"""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.packed_linear import quantized_layers

_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def to_stock(decoder: DecoderForCausalLM) -> PreTrainedModel | None:
    """The decoder as a stock model around the same parameters; None where no stock model has these parts."""
    config, classes = decoder.config, _stock_classes(decoder.config)
    if classes is None:
        return None
    config_class, model_class = classes
    window = {"sliding_window": config.sliding_window} if config_class is MistralConfig else {}
    stock_config = config_class(
        **{field: getattr(config, field) for field in _SHARED_FIELDS},
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        dtype=decoder.dtype,
        **window,
    )
    stock = _around_parameters_of(decoder, model_class, stock_config)
    stock.model.rotary_emb = type(stock.model.rotary_emb)(stock_config)  # its buffers are no parameters
    return stock


def _stock_classes(config: DecoderConfig) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]] | None:
    """The stock classes with these parts."""
    if config.position_encoding != "rotary" or any(config.ngram_heads) or {*config.channel_mixers} != {"swiglu"}:
        return None
    if {*config.token_mixers} == {"softmax"}:
        return (Qwen3Config, Qwen3ForCausalLM) if config.qk_norm else (LlamaConfig, LlamaForCausalLM)
    if {*config.token_mixers} == {"sliding"} and not config.qk_norm:
        return MistralConfig, MistralForCausalLM
    return None


def to_decoder(stock: PreTrainedModel) -> DecoderForCausalLM:
    """A decoder around the parameters of a Llama, Qwen3 or Mistral model.

    Raises:
        PerplabError: the model has parts that the decoder cannot express.
    """
    config = stock.config
    if not has_decoder_form(stock):
        raise PerplabError(
            f"a {config.model_type} model with these settings is not a plain decoder",
            "use a Llama, Qwen3 or Mistral checkpoint without biases or scaled rotary positions",
        )
    window = _window(config)
    decoder_config = DecoderConfig(
        **{field: getattr(config, field) for field in _SHARED_FIELDS},
        rope_theta=config.rope_parameters["rope_theta"],
        qk_norm=config.model_type == "qwen3",
        token_mixers=["softmax" if window is None else "sliding"] * config.num_hidden_layers,
        **({} if window is None else {"sliding_window": window}),
    )
    return _around_parameters_of(stock, DecoderForCausalLM, decoder_config)


def has_decoder_form(model: PreTrainedModel) -> bool:
    """Whether `to_decoder` takes the model."""
    config = model.config
    return (
        config.model_type in ("llama", "qwen3", "mistral")
        and config.rope_parameters["rope_type"] == "default"
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
        and (config.model_type == "mistral" or _window(config) is None)
    )


def _window(config: PreTrainedConfig) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _around_parameters_of(
    source: PreTrainedModel, model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> PreTrainedModel:
    with torch.device("meta"):
        model = model_class(config)
    for path, layer in quantized_layers(source).items():
        model.set_submodule(path, layer)
    model.load_state_dict(source.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = source.generation_config
    return model.train(source.training)
