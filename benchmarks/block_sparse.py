"""Block-sparse attention: time against density, and against torch's dense attention on CPU.

Causal attention, one row of 8,192 tokens, 4 heads of 64, float32, blocks of 128 tokens; forward, and forward and
backward. Density is the kept share of the blocks on and below the diagonal. `time / density` is the time relative to
the layout that keeps all, divided by density: 1 says that time is proportional. Times are medians.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import interleaved
from perplab.kernels import BlockLayout, block_sparse_attention

BLOCK = 128


def measure(quick: bool) -> list[dict[str, Any]]:
    length = 1024 if quick else 8192
    layouts = {
        "all": BlockLayout.local(length, BLOCK, length),
        "local 24": BlockLayout.local(length, BLOCK, 24),
        "local 8": BlockLayout.local(length, BLOCK, 8),
        "butterfly": BlockLayout.butterfly(length, BLOCK),
        "local 2 and global 1": BlockLayout.local(length, BLOCK, 2) | BlockLayout.global_(length, BLOCK, 1),
        "local 2": BlockLayout.local(length, BLOCK, 2),
    }
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 4, length, 64, generator=generator).requires_grad_() for _ in range(3)]
    dense = lambda: F.scaled_dot_product_attention(*inputs, is_causal=True)  # noqa: E731
    sides = {
        "dense": dense,
        **{name: (lambda kept=kept: block_sparse_attention(*inputs, kept)) for name, kept in layouts.items()},
    }
    rows = []
    for name, backward in (("forward", False), ("forward and backward", True)):
        timed = {
            side: (lambda call=call, backward=backward: one_pass(call, inputs, backward))
            for side, call in sides.items()
        }
        seconds = {side: time.median for side, time in interleaved(timed, 1 if quick else 3, warm_up=1).items()}
        for layout, kept in layouts.items():
            density = kept.density(causal=True)
            rows.append(
                {
                    "layout": layout,
                    "pass": name,
                    "density": density,
                    "seconds": seconds[layout],
                    "time / density": seconds[layout] / seconds["all"] / density,
                    "ratio to dense torch": seconds["dense"] / seconds[layout],
                }
            )
    return rows


def one_pass(attend: Any, inputs: list[Tensor], backward: bool) -> None:
    if backward:
        torch.autograd.grad(attend().sum(), inputs)
        return
    with torch.no_grad():
        attend()
