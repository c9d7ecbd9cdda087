"""Decoding: a token at a time from a state of constant size, and from a growing cache.

The same decoder (4 layers, width 256, heads of 64, float32, one thread) with softmax attention, with DeltaNet, and with
DeltaNet and attention over a window of 128 in turn, generating one token after contexts of growing length. Tokens a
second are medians over 24 tokens; bytes are all that the cache holds at the end of the context.
"""

import statistics
import time
from typing import Any

import torch

from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.training import new_decoder

MIXERS = {
    "softmax": ["softmax"] * 4,
    "deltanet": ["deltanet"] * 4,
    "hybrid": ["deltanet", "sliding"] * 2,
}
STEPS = 24


def measure(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    contexts = (64,) if quick else (128, 512, 2048, 4096, 8192)
    models = {name: small(layers) for name, layers in MIXERS.items()}
    return [row(context, models) for context in contexts]


def small(layers: list[str]) -> DecoderForCausalLM:
    config = DecoderConfig(
        vocab_size=512, num_hidden_layers=4, token_mixers=layers, sliding_window=128, max_position_embeddings=16_384
    )
    return new_decoder(config, 0).eval()


@torch.inference_mode()
def row(context: int, models: dict[str, DecoderForCausalLM]) -> dict[str, Any]:
    """All models after one length of context, a token each in turn."""
    tokens = torch.randint(512, (1, context), generator=torch.Generator().manual_seed(0))
    caches = {name: model(tokens, use_cache=True, logits_to_keep=1).past_key_values for name, model in models.items()}
    sizes = {name: cache.num_bytes for name, cache in caches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(STEPS):
        for name, model in models.items():
            started = time.perf_counter()
            model(tokens[:, -1:], past_key_values=caches[name], use_cache=True)
            seconds[name].append(time.perf_counter() - started)
    rates = {name: 1 / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "context": context,
        **{f"{name} tokens/s": rate for name, rate in rates.items()},
        "deltanet / softmax": rates["deltanet"] / rates["softmax"],
        **{f"{name} KiB": size / 1024 for name, size in sizes.items()},
    }
