"""Checkpoints of flash-linear-attention's `delta_net` models, read into a decoder and written back.

Decisions:
- Only names and shapes of weights differ: a convolution's taps are (channels, 1, width) there. The layer computes the
  same, so nothing is converted in value.
- What a decoder here does not have (other widths of keys or values, biases, other activations, residual attention) is
  refused by name.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from perplab.artifacts import read_json
from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.weight_files import check_weight_files

_PARTS = {
    "model.embeddings.": "model.embed_tokens.",
    ".attn_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attn.": ".self_attn.",
    "_conv1d.": "_conv.",
}
_ONLY = {
    "expand_k": 1.0,
    "expand_v": 1.0,
    "hidden_act": "swish",
    "use_output_norm": True,
    "conv_bias": False,
    "attnres_block_size": None,
}
_ACTIVATIONS = {"silu": "silu", "relu": "relu", "elu": "elu+1", "identity": "identity"}


DELTA_NET = "delta_net"
"""The model type of those checkpoints."""


def load_delta_net(folder: str | Path, dtype: str | torch.dtype = "auto") -> DecoderForCausalLM:
    """Read a `delta_net` checkpoint from a local folder.

    Args:
        folder: with `config.json` and weights in safetensors.
        dtype: of the weights in memory, a torch dtype or its name; `auto` for the checkpoint's own.

    Raises:
        PerplabError: files are missing or damaged, or the model has a part that a decoder does not.
    """
    folder = Path(folder)
    described = read_json(folder / "config.json", "download the checkpoint again")
    if described.get("model_type") != DELTA_NET:
        raise PerplabError(f"{folder} holds a {described.get('model_type')} model", "give one of model_type delta_net")
    check_weight_files(folder)
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    model = DecoderForCausalLM(config_from_fla(described))
    state = weights_from_fla(weights)
    missing = (
        model.state_dict().keys() - state.keys() - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    )
    unknown = state.keys() - model.state_dict().keys()
    if missing or unknown:
        odd = min(missing or unknown)
        raise PerplabError(f"{folder}: weight {odd} is {'missing' if missing else 'unknown'}", "download it again")
    model.load_state_dict(state, strict=False)
    own = state["model.embed_tokens.weight"].dtype
    return model.to(own if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))).eval()


def config_from_fla(described: Mapping[str, Any]) -> DecoderConfig:
    """The decoder's config for a `delta_net` config.

    Raises:
        PerplabError: it describes what a decoder does not have.
    """
    for name, only in _ONLY.items():
        if described.get(name, only) != only:
            raise PerplabError(f"a delta_net with {name} {described[name]}", f"only {only} can be read")
    layers, heads, hidden = (described[name] for name in ("num_hidden_layers", "num_heads", "hidden_size"))
    mixers = ["deltanet"] * layers
    specs = described.get("attn") or []
    shared: dict[str, Any] = {}
    for spec in [specs] if isinstance(specs, Mapping) else specs:
        if spec["num_heads"] != heads or spec.get("qkv_bias"):
            raise PerplabError("attention layers with other heads or with biases", "only the same heads can be read")
        window = spec.get("window_size")
        for layer in spec["layers"]:
            if not 0 <= layer < layers or mixers[layer] != "deltanet":
                raise PerplabError(f"layer {layer} of {layers} is assigned twice or does not exist", "correct `attn`")
            mixers[layer] = "softmax" if window is None else "sliding"
        given = {
            "sliding_window": window,
            "num_key_value_heads": spec.get("num_kv_heads"),
            "rope_theta": spec.get("rope_theta"),
        }
        given = {name: setting for name, setting in given.items() if setting is not None}
        if any(shared.get(name, setting) != setting for name, setting in given.items()):
            raise PerplabError("attention layers of different settings", "only one kind can be read")
        shared |= given
    return DecoderConfig(
        vocab_size=described["vocab_size"],
        hidden_size=hidden,
        intermediate_size=described.get("intermediate_size")
        or _intermediate_size(hidden, described.get("hidden_ratio")),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=described.get("max_position_embeddings", 2048),
        rms_norm_eps=described.get("norm_eps", 1e-6),
        tie_word_embeddings=described.get("tie_word_embeddings", False),
        initializer_range=described.get("initializer_range", 0.02),
        token_mixers=mixers,
        mixer_options={
            "deltanet": {
                "conv_size": described.get("conv_size", 4) if described.get("use_short_conv", True) else 0,
                "qk_activation": _ACTIVATIONS[described.get("qk_activation", "silu")],
                "qk_norm": described.get("qk_norm", "l2"),
                "use_gate": described.get("use_gate", False),
                "use_beta": described.get("use_beta", True),
                "allow_neg_eigval": described.get("allow_neg_eigval", False),
            }
        },
        pad_token_id=described.get("pad_token_id"),
        bos_token_id=described.get("bos_token_id", 1),
        eos_token_id=described.get("eos_token_id", 2),
        **shared,
    )


def weights_from_fla(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's state for that of a `delta_net`."""
    return {
        _renamed(name, _PARTS): weight.squeeze(1) if "_conv1d." in name else weight for name, weight in weights.items()
    }


def weights_to_fla(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `delta_net`'s state for that of a decoder."""
    parts = {ours: theirs for theirs, ours in _PARTS.items()}
    return {
        _renamed(name, parts): weight.unsqueeze(1) if re.search(r"\.[qkv]_conv\.", name) else weight
        for name, weight in weights.items()
    }


def _renamed(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


def _intermediate_size(hidden_size: int, ratio: int | None) -> int:
    """Two thirds of so many times the width, in steps of 256."""
    return 256 * math.ceil(int(hidden_size * (ratio or 4) * 2 / 3) / 256)
