"""N-gram heads: averages by running sums against dense averages, and what heads cost a training step.

The first rows average 4,096 tokens of 20 kinds over three orders, forward and backward, in rows of one document each.
`ngram_occurrences` and `ngram_average` stand beside `ngram_matches` and `ngram_average_reference`, which compare every
pair of positions and are quicker where rows are short and states wide. The last rows are training steps of a decoder
with and without heads of orders 1, 2 and 3 after its first layer, on the same tokens. Times are medians; a ratio above
1 says that the first side is quicker.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from measuring import interleaved
from perplab.kernels.ngram_average import (
    ngram_average,
    ngram_average_reference,
    ngram_matches,
    ngram_occurrences,
)
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig

TOKENS = 4096
KINDS = 20
ORDERS = (1, 2, 3)
REPETITIONS = 5


def measure(quick: bool) -> list[dict[str, Any]]:
    lengths, widths = ((256,), (64,)) if quick else ((256, 512, 1024, 2048, 4096), (64, 256))
    averages = [compare_averages(length, width) for width in widths for length in lengths]
    return averages + [compare_steps(length, widths[0]) for length in (lengths[0], lengths[-1])]


def compare_averages(length: int, width: int) -> dict[str, Any]:
    """Forward and backward of the averages of three heads."""
    ids = torch.randint(0, KINDS, (TOKENS // length, length), generator=torch.Generator().manual_seed(0))
    documents = torch.zeros_like(ids)
    states = torch.randn(*ids.shape, width, requires_grad=True)
    gradient = torch.randn_like(states)

    def fast() -> Tensor:
        return sum_of(lambda order: ngram_average(states, ngram_occurrences(ids, documents, order)))

    def dense() -> Tensor:
        return sum_of(lambda order: ngram_average_reference(states, ngram_matches(ids, documents, order)))

    torch.testing.assert_close(fast(), dense(), rtol=1e-5, atol=1e-5)
    sides = {
        "fast": lambda: torch.autograd.grad(fast(), states, gradient),
        "dense": lambda: torch.autograd.grad(dense(), states, gradient),
    }
    seconds = interleaved(sides, REPETITIONS, warm_up=1)
    return row(
        f"averages, width {width}", length, "running sums", "dense", seconds["fast"].median, seconds["dense"].median
    )


def sum_of(average: Callable[[int], Tensor]) -> Tensor:
    return torch.stack([average(order) for order in ORDERS]).sum(dim=0)


def compare_steps(length: int, width: int) -> dict[str, Any]:
    """A training step's forward and backward pass."""
    ids = torch.randint(0, KINDS, (TOKENS // length, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand_as(ids)

    def step(orders: list[int]) -> Callable[[], None]:
        shape = {"vocab_size": KINDS, "hidden_size": width, "intermediate_size": 3 * width}
        config = DecoderConfig(**shape, num_hidden_layers=2, num_attention_heads=2, ngram_heads=[orders, []])
        model = DecoderForCausalLM(config)

        def run() -> None:
            model.zero_grad()
            model.token_losses(ids, positions, ids.roll(-1, dims=1)).loss.backward()

        return run

    seconds = interleaved({"with": step(list(ORDERS)), "without": step([])}, REPETITIONS, warm_up=1)
    medians = seconds["with"].median, seconds["without"].median
    return row(f"training step, width {width}", length, "with heads", "without", *medians)


def row(what: str, length: int, first: str, second: str, first_seconds: float, second_seconds: float) -> dict[str, Any]:
    return {
        "what": what,
        "length": length,
        "first": first,
        "ms": first_seconds * 1000,
        "beside": second,
        "its ms": second_seconds * 1000,
        "ratio": second_seconds / first_seconds,
    }
