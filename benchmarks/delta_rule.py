"""The delta rule: chunks against the recurrence, transformers' chunks and softmax attention.

One row of four heads of 64 on one thread: `delta_rule`, our recurrence (its time a token, taken on 512 tokens),
`torch_chunk_gated_delta_rule` of transformers without decay, and torch's causal softmax attention. The last two grow
with more than the length in memory or time, so they stop before the longest. Times are medians of rounds in turn; a
ratio above 1 says that `delta_rule` is quicker. Goals: 20 times the recurrence and 3 times transformers at 4,096
tokens, and a time a token that does not depend on the length.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from measuring import interleaved
from perplab.kernels import delta_rule, delta_rule_reference

HEADS, HEAD_DIM = 4, 64
RECURRENCE_TOKENS = 512
LONGEST_TRANSFORMERS = 4096
LONGEST_SOFTMAX = 16_384

Mixer = Callable[..., Tensor]


def measure(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    lengths = (256,) if quick else (1024, 4096, 16_384, 65_536)
    return [
        row for dtype in (torch.float32, torch.bfloat16) for length in lengths for row in compare(dtype, length, quick)
    ]


def compare(dtype: torch.dtype, length: int, quick: bool) -> list[dict[str, Any]]:
    """A row for the forward pass, and one for forward and backward."""
    inputs, few = draw(length, dtype), draw(RECURRENCE_TOKENS, dtype)
    torch.testing.assert_close(transformers_rule(*few), chunks(*few), rtol=0, atol=0.05)
    mixers: dict[str, tuple[Mixer, list[Tensor]]] = {"chunks": (chunks, inputs), "recurrence": (recurrence, few)}
    if length <= LONGEST_TRANSFORMERS:
        mixers["transformers"] = (transformers_rule, inputs)
    if length <= LONGEST_SOFTMAX:
        mixers["softmax"] = (softmax, inputs)
    rows = []
    for name, turn in (("forward", forward), ("forward and backward", forward_and_backward)):
        sides = {side: turn(mixer, given) for side, (mixer, given) in mixers.items()}
        seconds = interleaved(sides, 1 if quick else 3, warm_up=1)
        ours = seconds["chunks"].median / length
        ratios = {
            side: seconds[side].median / (RECURRENCE_TOKENS if side == "recurrence" else length) / ours
            for side in mixers
        }
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "tokens": length,
                "pass": name,
                "chunks us/token": 1e6 * ours,
                **{f"{side} / chunks": ratios.get(side, "") for side in ("recurrence", "transformers", "softmax")},
            }
        )
    return rows


def draw(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and strengths, laid out as a layer's projections leave them."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, length, HEADS, HEAD_DIM, generator=generator)
    states = (
        F.normalize(query, dim=-1),
        F.normalize(key, dim=-1),
        value,
        torch.rand(1, length, HEADS, generator=generator),
    )
    return [each.to(dtype).transpose(1, 2).requires_grad_() for each in states]


def chunks(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    return delta_rule(query, key, value, beta)[0]


def recurrence(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    return delta_rule_reference(query, key, value, beta)[0]


def transformers_rule(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    query, key, value, beta = (states.transpose(1, 2) for states in (query, key, value, beta))
    output: Tensor = torch_chunk_gated_delta_rule(query, key, value, torch.zeros_like(beta), beta)[0]
    return output.transpose(1, 2)


def softmax(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def forward(mixer: Mixer, inputs: list[Tensor]) -> Callable[[], Tensor]:
    def turn() -> Tensor:
        with torch.no_grad():
            return mixer(*inputs)

    return turn


def forward_and_backward(mixer: Mixer, inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(mixer(*inputs).sum(), inputs, allow_unused=True)
