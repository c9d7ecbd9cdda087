"""Training speed: the trainer against a plain loop over `transformers`.

The same decoder, weights and batches (8 x 512 tokens) on both sides, products in bfloat16 on CPU. perplab's side is the
trainer's whole step; the plain side is `LlamaForCausalLM` under `torch.autocast`, clipped, with `torch.optim.AdamW`
(`contestants.py`). A row holds one document of 512 tokens or eight of 64; the plain loop then gets position ids that
restart, so that both sides compute the same, which is checked before timing.

Times are of 9 steps taken in turn. The share of the matrix rate is the step's arithmetic over what a product of two
2048 x 2048 bfloat16 matrices reaches in the same run. A step's arithmetic is 6 x parameters (with the head, and the
embeddings only where they are the head) x tokens, and for the causal half of attention 6 x layers x hidden size x
document length x tokens. Goals: 1.5 times the plain loop's speed, 60 % of the matrix rate.
"""

from typing import Any

import torch

from contestants import Shape, confirm_same_function, perplab_step, plain_step
from measuring import Seconds, in_new_process, interleaved

ROWS, LENGTH = 8, 512
REPETITIONS = 9
MATRIX = 2048
SHAPES = {
    "5 M": Shape(hidden_size=256, num_hidden_layers=5, intermediate_size=704, vocab_size=6144),
    "30 M": Shape(hidden_size=512, num_hidden_layers=8, intermediate_size=1408, vocab_size=8192),
}
TINY = {"tiny": Shape(hidden_size=64, num_hidden_layers=1, intermediate_size=128, vocab_size=512)}


def measure(quick: bool) -> list[dict[str, Any]]:
    shapes, rows, repetitions = (TINY, 1, 2) if quick else (SHAPES, ROWS, REPETITIONS)
    # One process a row: what torch.compile has seen of another shape would change the code it makes for this one.
    return [
        in_new_process(compare, name, shape, rows, document_tokens, repetitions)
        for name, shape in shapes.items()
        for document_tokens in (LENGTH, LENGTH // 8)
    ]


def compare(name: str, shape: Shape, rows: int, document_tokens: int, repetitions: int) -> dict[str, Any]:
    confirm_same_function(shape, LENGTH, document_tokens)
    ours = perplab_step(shape, rows, LENGTH, document_tokens)
    theirs = plain_step(shape, rows, LENGTH, document_tokens)
    left, right = torch.rand(2, MATRIX, MATRIX).to(torch.bfloat16)
    sides = {"ours": ours, "theirs": theirs, "product": lambda: left @ right}
    seconds = interleaved(sides, repetitions)
    tokens = rows * LENGTH
    products_per_second = 2 * MATRIX**3 / seconds["product"].median
    share = {
        side: step_products(shape, document_tokens, tokens) / seconds[side].median / products_per_second
        for side in ("ours", "theirs")
    }
    return {
        "model": name,
        "documents a row": LENGTH // document_tokens,
        **speeds("perplab", tokens, seconds["ours"]),
        **speeds("plain", tokens, seconds["theirs"]),
        "ratio": seconds["theirs"].median / seconds["ours"].median,
        "bf16 product GFLOP/s": products_per_second / 1e9,
        "perplab % of it": 100 * share["ours"],
        "plain % of it": 100 * share["theirs"],
    }


def speeds(side: str, tokens: int, seconds: Seconds) -> dict[str, float]:
    return {f"{side} tokens/s": tokens / seconds.median, f"{side} best": tokens / seconds.best}


def step_products(shape: Shape, document_tokens: int, tokens: int) -> float:
    """Floating-point operations of one step, forward and backward."""
    layer = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
    parameters = shape.num_hidden_layers * layer + shape.vocab_size * shape.hidden_size
    attention = shape.num_hidden_layers * shape.hidden_size * document_tokens
    return 6.0 * (parameters + attention) * tokens
