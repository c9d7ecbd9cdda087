"""The optimiser of a run: AdamW that decays matrices and leaves alone what decay would not make smaller models of.

Left alone are vectors (norms, biases, gates) and what a module names in `undecayed`. What it names in `unoptimised` has
a gradient that the module itself deals with.
"""

from typing import Any

import torch
from torch import nn

from perplab.training.config import TrainConfig


def new_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; the learning rate is the trainer's to set."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        spared, foreign = getattr(module, "undecayed", ()), getattr(module, "unoptimised", ())
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen and name not in foreign:
                seen.add(parameter)
                (undecayed if parameter.ndim == 1 or name in spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=True
    )


def trained_parameters(optimizer: torch.optim.Optimizer) -> int:
    """Numbers that the optimiser trains. AdamW keeps two moments of each: 8 bytes in float32."""
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
