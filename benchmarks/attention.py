"""Attention: `packed_attention` against torch's own and the textbook's on CPU.

Causal attention of rows of one document, 64 numbers a head: `packed_attention`,
`F.scaled_dot_product_attention(is_causal=True)`, and the textbook's product, mask, softmax and product (up to 4,096
tokens). Up to 4,096 tokens a call has 8 heads and 4,096 tokens, cut into rows; beyond, 2 heads and one row. GFLOP/s
count the products that a causal mask leaves: 2 x batch x heads x length² x 64 forward, 3.5 times as many with the
backward pass, where scores are computed again. Times are medians; a ratio above 1 says that perplab is quicker.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from measuring import interleaved
from perplab.kernels import packed_attention, packed_attention_reference

HEAD_DIM = 64
TOKENS = 4096
"""Of a call, and the longest row with 8 heads and with the textbook's attention."""
REPETITIONS, REPETITIONS_OF_LONG = 5, 2


def measure(quick: bool) -> list[dict[str, Any]]:
    lengths = (64, 256) if quick else (256, 512, 1024, 2048, 4096, 8192, 16_384)
    return [
        row for dtype in (torch.float32, torch.bfloat16) for length in lengths for row in compare(dtype, length, quick)
    ]


def compare(dtype: torch.dtype, length: int, quick: bool) -> list[dict[str, Any]]:
    """A row for the forward pass without gradients, and one for both passes."""
    batch, heads = max(1, TOKENS // length), 8 if length <= TOKENS else 2
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, length, HEAD_DIM)
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    upstream = torch.randn(shape, generator=generator).to(dtype)
    position_ids = torch.arange(length).expand(batch, -1)
    sides: dict[str, Callable[[], torch.Tensor]] = {
        "perplab": lambda: packed_attention(*inputs, position_ids),
        "torch": lambda: F.scaled_dot_product_attention(*inputs, is_causal=True),
    }
    if length <= TOKENS:
        sides["textbook"] = lambda: packed_attention_reference(*inputs, position_ids)

    def forward(side: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return side()

    def both(side: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(side(), inputs, upstream)

    torch.testing.assert_close(sides["perplab"](), sides["torch"](), rtol=0.02, atol=0.02)
    products = 2 * batch * heads * length**2 * HEAD_DIM
    rows = []
    for name, run, work in (("forward", forward, products), ("forward and backward", both, 3.5 * products)):
        timed = {side: (lambda call=call, run=run: run(call)) for side, call in sides.items()}
        repetitions = 1 if quick else REPETITIONS if length <= TOKENS else REPETITIONS_OF_LONG
        seconds = {
            side: time.median for side, time in interleaved(timed, repetitions, warm_up=1, least_seconds=0.1).items()
        }
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "length": length,
                "pass": name,
                "perplab GFLOP/s": work / seconds["perplab"] / 1e9,
                "torch GFLOP/s": work / seconds["torch"] / 1e9,
                "ratio to torch": seconds["torch"] / seconds["perplab"],
                "ratio to textbook": seconds["textbook"] / seconds["perplab"] if "textbook" in seconds else "",
            }
        )
    return rows
