"""Adapting phases: complex attention beside rotary attention, and factored scores beside literal ones, float32.

A layer of width 256 with four heads reads 2048 tokens in rows of each length, forward and backward, as it runs and as
`torch.compile` fuses it for training. Scores are those of one row, forward only: phases turned and one matrix product,
beside the paper's tensor of all phase differences, up to the length where that tensor fits. Times are medians; a ratio
above 1 says that the first side is quicker.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from measuring import interleaved
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixers.complex import ComplexAttention, EulerPhase
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.softmax import SoftmaxAttention
from perplab.models.parts import rotate

LENGTHS = (256, 512, 1024, 2048)
TOKENS = 2048
HEADS, HEAD_DIM = 4, 64
LONGEST_LITERAL = 512
REPETITIONS = 7


def measure(quick: bool) -> list[dict[str, Any]]:
    lengths, repetitions = (LENGTHS[:1], 2) if quick else (LENGTHS, REPETITIONS)
    layers = [row for length in lengths for row in compare_layers(length, repetitions)]
    literal = [compare_scores(length, repetitions) for length in lengths if length <= LONGEST_LITERAL]
    return layers + literal


def compare_layers(length: int, repetitions: int) -> list[dict[str, Any]]:
    """A layer of each kind, as it runs and compiled."""
    rows = []
    for how in ("", ", compiled"):
        sides = {}
        for name, layer in (("complex layer", ComplexAttention), ("rotary layer", SoftmaxAttention)):
            sides[name] = step(layer(config(), 0), length, is_compiled=bool(how))
        rows.append(row(f"complex layer{how}", f"rotary layer{how}", length, sides, repetitions))
    return rows


def config() -> DecoderConfig:
    """One layer, its mixer either of the two."""
    return DecoderConfig(
        hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, num_hidden_layers=1, token_mixers=["complex"]
    )


def step(layer: nn.Module, length: int, *, is_compiled: bool) -> Callable[[], object]:
    """Forward and backward of a layer."""
    generator = torch.Generator().manual_seed(0)
    rows = TOKENS // length
    hidden_states = torch.randn(rows, length, HEADS * HEAD_DIM, generator=generator)
    positions = torch.arange(length).expand(rows, -1)
    context = SequenceContext(
        position_ids=positions,
        rotary=angles(length),
        packed=True,
        attention_mask=None,
        real=None,
        cache=None,
        input_ids=None,
    )
    called = torch.compile(layer) if is_compiled else layer

    def run() -> None:
        layer.zero_grad()
        called(hidden_states, context).square().mean().backward()

    return run


def angles(length: int) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines of one row."""
    frequency = 10_000.0 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    angle = torch.cat((frequency, frequency)) * torch.arange(length)[:, None]
    return angle.cos()[None], angle.sin()[None]


@torch.no_grad()
def compare_scores(length: int, repetitions: int) -> dict[str, Any]:
    """Scores of one row."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, HEADS, length, HEAD_DIM, generator=generator) for _ in range(2))
    phase = EulerPhase(HEADS, HEAD_DIM).requires_grad_(False)
    rotary = angles(length)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    difference = distance[..., None] * 10_000.0 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))

    def factored() -> Tensor:
        turned = [rotate(states, rotary) for states in phase(query, key)]
        return turned[0] @ turned[1].transpose(-1, -2)

    def literal() -> Tensor:
        (a, b), (c, d) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
        semantic = torch.atan2(b, a)[:, :, :, None] - torch.atan2(d, c)[:, :, None]
        angle = phase.delta[:, None, None] * semantic + phase.bias[:, None, None] + difference
        magnitude = torch.hypot(a, b)[:, :, :, None] * torch.hypot(c, d)[:, :, None]
        return (magnitude * angle.cos()).sum(-1)

    return row("factored scores", "literal scores", length, {"ours": factored, "theirs": literal}, repetitions)


def row(
    ours: str, theirs: str, length: int, sides: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, Any]:
    """One line of the table; the first side is ours."""
    our_seconds, their_seconds = (time.median for time in interleaved(sides, repetitions, warm_up=1).values())
    return {
        "what": ours,
        "length": length,
        "seconds": our_seconds,
        "beside": theirs,
        "their seconds": their_seconds,
        "ratio": their_seconds / our_seconds,
    }
