"""Memory of attention against length: the textbook's way and ours.

One forward and backward pass of causal attention, 4 heads of 64, float32, each point in a process of its own. MiB are
the peak of resident memory above what was resident before the pass, and so include output and gradients, which are
linear in length too. The slope is that of the logarithms between a length and the one before it: 2 says quadratic.
"""

import math
from typing import Any

import torch

from measuring import forget_peak, in_new_process, peak_resident_mib, resident_mib
from perplab.kernels import packed_attention, packed_attention_reference

SIDES = {"perplab": packed_attention, "textbook": packed_attention_reference}


def measure(quick: bool) -> list[dict[str, Any]]:
    lengths = {
        "perplab": (256, 1024) if quick else (1024, 4096, 16_384),
        "textbook": (256, 1024) if quick else (1024, 4096),
    }
    rows = []
    for side, points in lengths.items():
        before: tuple[int, float] | None = None
        for length in points:
            mib = in_new_process(peak_of_pass, side, length)
            slope = math.log(mib / before[1]) / math.log(length / before[0]) if before else ""
            rows.append({"attention": side, "length": length, "MiB": mib, "slope": slope})
            before = (length, mib)
    return rows


def peak_of_pass(side: str, length: int) -> float:
    """Peak of resident memory of one pass, above what was resident before it."""
    inputs = [torch.randn(1, 4, length, 64, requires_grad=True) for _ in range(3)]
    position_ids = torch.arange(length)[None]
    short = [states.detach()[:, :, :256].requires_grad_() for states in inputs]
    SIDES[side](*short, position_ids[:, :256]).sum().backward()  # what the first call ever allocates is not counted
    forget_peak()
    before = resident_mib()
    SIDES[side](*inputs, position_ids).sum().backward()
    return peak_resident_mib() - before
