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
from perplab.models.decoder import DecoderForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def can_compile() -> bool:
    """Whether a C++ compiler is there for `torch.compile` to call."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def compile_model(model: "PreTrainedModel") -> SoftmaxGradient:
    """Compile a decoder's blocks in place, and return a compiled step for its loss.

    Without a compiler nothing is compiled, and of other families' models the loss alone: their blocks are not written
    for it.
    """
    if not can_compile():
        return softmax_gradient
    if isinstance(model, DecoderForCausalLM):
        for layer in model.model.layers:
            layer.compile()
    compiled: SoftmaxGradient = torch.compile(softmax_gradient)
    return compiled
