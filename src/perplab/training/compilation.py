"""Compilation, applied to a model from outside.

The elementwise work between matrix products (norms, rotary positions, gates, the softmax of the loss) is memory traffic
when each operation runs alone. `torch.compile` fuses it. Blocks are compiled one by one: they share one body, so a deep
model compiles as fast as a shallow one.
"""

import os
import shutil
from typing import TYPE_CHECKING

import torch

from perplab.kernels import softmax_gradient
from perplab.kernels.linear_cross_entropy import SoftmaxGradient

if TYPE_CHECKING:
    from perplab.models.decoder import DecoderForCausalLM


def can_compile() -> bool:
    """Whether a C++ compiler is there for `torch.compile` to call."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def compile_model(model: "DecoderForCausalLM") -> SoftmaxGradient:
    """Compile the model's blocks in place, and return a compiled step for its loss."""
    for layer in model.model.layers:
        layer.compile()
    compiled: SoftmaxGradient = torch.compile(softmax_gradient)
    return compiled
