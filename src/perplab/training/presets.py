"""From the one dial to a shape.

Width is 64 a layer with heads of 64, as nanochat has it; the vocabulary grows with the model, so that embeddings stay a
sensible share of it.
"""

import math

from perplab.models.decoder_config import DecoderConfig
from perplab.training.config import MixerName, TrainConfig

HEAD_DIM = 64


def vocabulary_size(config: TrainConfig) -> int:
    """Vocabulary of the tokenizer that a run trains for itself."""
    if config.vocab_size is not None:
        return config.vocab_size
    return 4096 if config.depth < 4 else 6144 if config.depth < 8 else 16_384 if config.depth < 12 else 32_768


def decoder_config(config: TrainConfig, vocab_size: int, end_of_text: int) -> DecoderConfig:
    """The decoder's shape for a training run.

    Args:
        config: the run; fields left None follow the dial.
        vocab_size: of the tokenizer in use.
        end_of_text: its token that begins and ends documents.
    """
    hidden_size = config.hidden_size or HEAD_DIM * config.depth
    heads = max(1, hidden_size // HEAD_DIM)
    layers = config.num_hidden_layers or config.depth
    window = max(1, config.block_size // 4) if config.sliding_window is None else config.sliding_window
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=config.intermediate_size or 64 * math.ceil(hidden_size * 8 / 3 / 64),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=config.num_key_value_heads or heads,
        max_position_embeddings=config.block_size,
        initializer_range=hidden_size**-0.5,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.qk_norm,
        position_encoding=config.position_encoding,
        sliding_window=window,
        token_mixers=token_mixers(config.mixer, layers),
        mixer_options={_principal(config.mixer): config.mixer_options} if config.mixer_options else {},
        ngram_heads=[list(config.ngram_heads) if layer == 0 else [] for layer in range(layers)],
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )


def token_mixers(mixer: MixerName, layers: int) -> list[str]:
    """The token mixer of each layer.

    The hybrids are those of the DeltaNet paper (section 3.4): window attention in every second layer, or global
    attention in the second layer and the one after the middle.
    """
    if mixer == "hybrid":
        return [("deltanet", "sliding")[layer % 2] for layer in range(layers)]
    if mixer == "hybrid-global":
        return ["softmax" if layer in (1, max(1, layers // 2)) else "deltanet" for layer in range(layers)]
    return [mixer] * layers


def _principal(mixer: MixerName) -> str:
    """The mixer that `mixer_options` are of."""
    return "deltanet" if mixer.startswith("hybrid") else mixer


def peak_learning_rate(config: TrainConfig, hidden_size: int) -> float:
    """The run's peak learning rate; a wider model takes a smaller one."""
    if config.learning_rate is not None:
        return config.learning_rate
    return 2e-3 * math.sqrt(256 / hidden_size)
