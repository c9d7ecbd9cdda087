"""Attention: `packed_attention` against torch's own on CPU.

`packed_attention` and `F.scaled_dot_product_attention(is_causal=True)` on the same 4,096 tokens, cut into rows of one
document each. GFLOP/s count the products that a causal mask leaves: 2 x batch x heads x length² x 64 forward, and 2.5
times as many backward, where the weights are computed again. Times are medians of 7 rounds.
"""

from typing import Any

import torch
import torch.nn.functional as F

from measuring import interleaved
from perplab.kernels import packed_attention

TOKENS = 4096
HEAD_DIM = 64
REPETITIONS = 7


def measure(quick: bool) -> list[dict[str, Any]]:
    lengths, heads = ((256,), (4,)) if quick else ((256, 512, 1024, 2048), (4, 8))
    return [
        row
        for dtype in (torch.bfloat16, torch.float32)
        for number in heads
        for length in lengths
        for row in compare(dtype, number, length)
    ]


def compare(dtype: torch.dtype, heads: int, length: int) -> list[dict[str, Any]]:
    """A row for the forward and one for the backward pass."""
    batch = TOKENS // length
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, length, HEAD_DIM)
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    grad_output = torch.randn(shape, generator=generator).to(dtype)
    position_ids = torch.arange(length).expand(batch, -1)

    def ours() -> torch.Tensor:
        return packed_attention(*inputs, position_ids)

    def theirs() -> torch.Tensor:
        return F.scaled_dot_product_attention(*inputs, is_causal=True)

    def backward_of(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, inputs, grad_output, retain_graph=True)

    our_output, their_output = ours(), theirs()
    torch.testing.assert_close(our_output, their_output, rtol=0.02, atol=0.02)
    forward_products = 2 * batch * heads * length**2 * HEAD_DIM
    passes = {
        "forward": (forward_products, ours, theirs),
        "backward": (2.5 * forward_products, lambda: backward_of(our_output), lambda: backward_of(their_output)),
    }
    rows = []
    for name, (products, our_pass, their_pass) in passes.items():
        seconds = interleaved({"ours": our_pass, "torch": their_pass}, REPETITIONS, least_seconds=0.2)
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "heads": heads,
                "length": length,
                "pass": name,
                "perplab GFLOP/s": products / seconds["ours"].median / 1e9,
                "torch GFLOP/s": products / seconds["torch"].median / 1e9,
                "ratio": seconds["torch"].median / seconds["ours"].median,
            }
        )
    return rows
