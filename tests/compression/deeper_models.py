"""Models of any family with as many blocks as a test needs."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from perplab.compression.fusion.removal import per_block_settings


def deeper(model, blocks, seed=0, **settings):
    """A model of the same family and sizes with `blocks` blocks and random weights, biases and norms."""
    config = model.config.to_diff_dict()
    for name in per_block_settings(model.config):
        config.pop(name, None)
    for name in ("model_type", "transformers_version", "architectures"):
        config.pop(name, None)
    depth = next(name for name in ("num_hidden_layers", "n_layer") if name in config)
    kind = model.config.model_type
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **config | {depth: blocks} | settings), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()
