"""Rounding a layer: a sweep of QuantEase and a pass of GPTQ, 3 bits, a scale a row, float32.

A sweep stands beside the one matrix product that it cannot do without, beside a pass of our GPTQ, and beside a sweep of
the published implementation (the difference between a run of two and of one), read from a clone of `linkedin/QuantEase`
that `QUANTEASE_CLONE` names, on the smaller layer: on the larger one it takes minutes. A pass of GPTQ stands beside
llm-compressor's `quantize_weight`, where that is installed. Without clone or package their rows are left out. Times are
medians; a ratio above 1 says that perplab is quicker.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

from measuring import interleaved
from perplab.compression.grid import AffineGrid, GridOptions
from perplab.compression.solvers.descent import sweep
from perplab.compression.solvers.gptq import feedback, round_with_feedback

BITS = 3
REPETITIONS = 2
LARGEST_PUBLISHED = 4096
CLONE = os.environ.get("QUANTEASE_CLONE")

Sides = dict[str, Callable[[], object]]


def measure(quick: bool) -> list[dict[str, Any]]:
    shapes = ((256, 512),) if quick else ((4096, 4096), (4096, 11008))
    return [row for shape in shapes for row in compare(*shape)]


def compare(out: int, inputs: int) -> list[dict[str, Any]]:
    """A row for each peer of a layer's sweep and pass."""
    weight, second = layer(out, inputs)
    grid = AffineGrid.fit(weight, GridOptions(bits=BITS))
    order = torch.arange(inputs)
    round_into = grid.column_rounder(order, weight.dtype).round_into
    target = weight.T.contiguous()
    current = target.clone()
    one_product = torch.empty_like(target)

    def our_gptq() -> Tensor:
        coupling, _ = feedback(second, order, 0.01)
        return round_with_feedback(weight, order, coupling, round_into)

    sides: Sides = {
        "sweep": lambda: sweep(current, target, second, round_into),
        "product": lambda: torch.mm(second, target, out=one_product),
        "gptq": our_gptq,
    }
    sides |= llm_compressor(weight, second, grid)
    if inputs <= LARGEST_PUBLISHED:
        sides |= published(weight, second)
    seconds = {name: time.median for name, time in interleaved(sides, REPETITIONS, warm_up=1).items()}
    if "published, 2 sweeps" in seconds:
        seconds["published"] = seconds["published, 2 sweeps"] - seconds["published, 1 sweep"]
    pairs = (
        ("QuantEase sweep", "sweep", "the product alone", "product"),
        ("QuantEase sweep", "sweep", "our GPTQ", "gptq"),
        ("QuantEase sweep", "sweep", "published QuantEase", "published"),
        ("GPTQ", "gptq", "llm-compressor's GPTQ", "llm-compressor"),
    )
    return [
        {
            "layer": f"{out} x {inputs}",
            "perplab": name,
            "seconds": seconds[ours],
            "beside": peer,
            "their seconds": seconds[theirs],
            "ratio": seconds[theirs] / seconds[ours],
        }
        for name, ours, peer, theirs in pairs
        if theirs in seconds
    ]


def layer(out: int, inputs: int) -> tuple[Tensor, Tensor]:
    """A random weight and the second moment of inputs that share a few directions."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, inputs, generator=generator)
    signal = torch.randn(inputs, 64, generator=generator)
    second = signal @ signal.T
    second.diagonal().add_(32.0)
    return weight, second


def llm_compressor(weight: Tensor, second: Tensor, grid: AffineGrid) -> Sides:
    """llm-compressor's pass, on copies because it works in place."""
    try:
        from compressed_tensors.quantization import QuantizationArgs
        from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    except ImportError:
        return {}
    settings = QuantizationArgs(num_bits=BITS, symmetric=False, strategy="channel", actorder=None)
    middle = 2 ** (BITS - 1)  # its codes are signed
    scale, zero = grid.scale.unsqueeze(0), (grid.zero.to(torch.int8) - middle).unsqueeze(0)

    def run() -> object:
        copies = weight.clone().unsqueeze(0), second.clone().unsqueeze(0)
        return quantize_weight(*copies, scale, zero, None, settings)

    return {"llm-compressor": run}


def published(weight: Tensor, second: Tensor) -> Sides:
    """Runs of the published code, which expects a GPU for nothing but its clock."""
    if not CLONE:
        return {}
    sys.path.insert(0, CLONE)
    quantease = importlib.import_module("method.quantease").QuantEase
    quantizer = importlib.import_module("method.quant").Quantizer

    def run(sweeps: int) -> None:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        solver = quantease(linear, num_iter=sweeps)
        solver.XtX = second.clone()
        solver.quantizer = quantizer()
        solver.quantizer.configure(BITS, perchannel=True, sym=False)
        clock = patch.multiple("torch.cuda", Event=MagicMock(), synchronize=MagicMock())
        with clock, contextlib.redirect_stdout(io.StringIO()):
            solver.fasterquant(group_size=-1, actorder=False)

    return {"published, 1 sweep": lambda: run(1), "published, 2 sweeps": lambda: run(2)}
