"""FlashAttention: fast and memory-efficient exact attention (Dao et al., arXiv 2205.14135).

The kernels are compared with the textbook's attention, which writes its scores out, on random numbers: error against
float64, time of a forward and backward pass side by side, growth of peak memory, and elements moved between slow and
fast memory by exact counts. On a CPU the gain comes from caches in place of a GPU's shared memory: the same principle a
level up, so times and memory are the claim and not the paper's factors.

What longer context buys is measured on small decoders of one size, trained on equally many tokens in rows of different
length. All are scored on the same tokens of the same long held-out files, each with its own context. Block-sparse
attention is put into the shipped model, which was trained with dense attention and is not trained further.
"""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.sequence_training import train_on
from perplab.kernels import (
    BlockLayout,
    attention_io,
    block_sparse_attention,
    packed_attention,
    packed_attention_reference,
)
from perplab.models import DecoderConfig, load, load_tokenizer
from perplab.models.attention_interface import sparse_attention
from perplab.text import open_corpus
from perplab.training import new_decoder

_HEAD_DIM = 64
_BLOCK = 32
"""Tokens of a block in the shipped model, whose rows have 512."""

_STEP_TOKENS = 4096
_LEARNING_RATE = 3e-3

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        lengths: at which time and memory are measured; memory grows between the two.
        heads: of the random inputs.
        repetitions: of a timing.
        tokens: that each decoder is trained on.
        layers: of the decoders.
        width: of the decoders.
        contexts: their lengths of rows, ascending, each dividing the next.
        windows: held-out files that are scored.
    """

    lengths: tuple[int, int]
    heads: int
    repetitions: int
    tokens: int
    layers: int
    width: int
    contexts: tuple[int, int, int]
    windows: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        lengths=(256, 512),
        heads=1,
        repetitions=1,
        tokens=4096,
        layers=1,
        width=64,
        contexts=(32, 64, 128),
        windows=4,
    ),
    "pocket": _Setting(
        lengths=(2048, 4096),
        heads=4,
        repetitions=5,
        tokens=245_760,
        layers=2,
        width=128,
        contexts=(128, 512, 2048),
        windows=40,
    ),
    "gpu": _Setting(
        lengths=(2048, 4096),
        heads=16,
        repetitions=20,
        tokens=8_388_608,
        layers=8,
        width=512,
        contexts=(512, 1024, 4096),
        windows=100,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Errors, seconds, slopes of memory, elements moved, and nats a token."""
    setting = _SETTINGS[scale]
    return {
        **_errors(setting, seed),
        **_seconds(setting, seed),
        **_memory(setting, seed),
        **_elements(),
        **_longer_context(setting, seed),
        **_sparse_model(setting),
    }


def _random(length: int, heads: int, seed: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Query, key and value of one document, and its positions."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, length, _HEAD_DIM)
    query, key, value = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))
    return (query, key, value), torch.arange(length)[None]


def _errors(setting: _Setting, seed: int) -> dict[str, float]:
    """Largest error of the output, against the textbook's attention in float64."""
    length = setting.lengths[0]
    (query, key, value), position_ids = _random(length, 1, seed)
    sides: dict[str, Attend] = {"flash": packed_attention, "textbook": packed_attention_reference}
    with torch.no_grad():
        truth = packed_attention_reference(query.double(), key.double(), value.double(), position_ids)
        return {
            f"{name}: error": float((attend(query, key, value, position_ids) - truth).abs().max())
            for name, attend in sides.items()
        }


def _seconds(setting: _Setting, seed: int) -> dict[str, float]:
    """Median seconds of a forward and backward pass, all sides in turn."""
    figures: dict[str, float] = {}
    for length in setting.lengths:
        states, position_ids = _random(length, setting.heads, seed)
        layout = BlockLayout.local(length, 64, 2) | BlockLayout.global_(length, 64, 1)
        sides: dict[str, Callable[[], Tensor]] = {
            "flash": partial(packed_attention, *states, position_ids),
            "textbook": partial(packed_attention_reference, *states, position_ids),
            "sparse": partial(block_sparse_attention, *states, layout),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(setting.repetitions + 1):
            for name, attend in sides.items():
                started = time.perf_counter()
                torch.autograd.grad(attend().sum(), states)
                if round_:  # the first is to warm up
                    taken[name].append(time.perf_counter() - started)
        position = "short" if length == setting.lengths[0] else "long"
        figures |= {f"{name}, {position}: seconds": statistics.median(seconds) for name, seconds in taken.items()}
    return figures


def _memory(setting: _Setting, seed: int) -> dict[str, float]:
    """Slope of the logarithm of a pass's peak memory over that of the length; nothing where Linux does not tell it."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    figures: dict[str, float] = {}
    sides: dict[str, Attend] = {"flash": packed_attention, "textbook": packed_attention_reference}
    for name, attend in sides.items():
        short, long = (_peak(attend, length, setting.heads, seed) for length in setting.lengths)
        figures[f"{name}: slope of memory"] = math.log2(long / short) / math.log2(
            setting.lengths[1] / setting.lengths[0]
        )
    return figures


def _peak(attend: Attend, length: int, heads: int, seed: int) -> float:
    """Peak of resident memory of a forward and backward pass above what was resident before it, in KiB."""
    (query, key, value), position_ids = _random(length, heads, seed)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, so that it counts when it is taken again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    before = _status_kib("VmRSS")
    attend(query, key, value, position_ids).sum().backward()  # type: ignore[no-untyped-call]
    return max(_status_kib("VmHWM") - before, 1.0)


def _status_kib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _elements() -> dict[str, float]:
    """Elements that one head of 1,024 tokens moves, and of 4,096 tokens by density."""
    figures = {
        "standard: elements": float(attention_io(1024, 64, "standard").elements),
        "flash: elements": float(attention_io(1024, 64, "flash1", fast_memory=51_200).elements),
        "flash 2: elements": float(attention_io(1024, 64, "flash2").elements),
        "flash 2, long: elements": float(attention_io(4096, 64, "flash2", causal=True, block_q=64).elements),
    }
    layout = BlockLayout.butterfly(4096, 64)
    sparse = attention_io(4096, 64, "flash2", causal=True, layout=layout)
    return {**figures, "butterfly: elements": float(sparse.elements), "butterfly: density": layout.density(causal=True)}


def _longer_context(setting: _Setting, seed: int) -> dict[str, float]:
    """Nats a token of decoders trained in rows of each length, each read with its own context."""
    words = load_tokenizer("pocket")
    windows = _beginnings(words, "heldout", setting.windows, setting.contexts[-1])
    text = _training_text(words, setting.tokens + 1)
    figures: dict[str, float] = {}
    for name, context in zip(("short", "middle", "long"), setting.contexts, strict=True):
        shape = DecoderConfig(
            vocab_size=len(words),
            hidden_size=setting.width,
            intermediate_size=3 * setting.width,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.width // _HEAD_DIM,
            max_position_embeddings=setting.contexts[-1],
        )
        model = new_decoder(shape, seed)
        batches = _batches(text, context, max(1, _STEP_TOKENS // context), seed)
        train_on(model, batches, steps=setting.tokens // _STEP_TOKENS, learning_rate=_LEARNING_RATE)
        figures[f"context {name}: nats"] = _nats(model, windows, context, setting.contexts[0])
    return figures


def _training_text(words: PreTrainedTokenizerBase, count: int) -> Tensor:
    """So many tokens of training files, one after another."""
    ids: list[int] = []
    for document in open_corpus("builtin:python", "train"):
        ids += words(document.text)["input_ids"]
        if len(ids) >= count:
            break
    return torch.tensor(ids[:count])


def _batches(text: Tensor, context: int, rows: int, seed: int) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The text once, cut into rows of `context` tokens in an order drawn by the seed: inputs, and what follows."""
    inputs, labels = (part.view(-1, context) for part in (text[:-1], text[1:]))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    for chosen in torch.split(order, rows):
        yield inputs[chosen].numpy(), labels[chosen].numpy()


def _beginnings(words: PreTrainedTokenizerBase, side: Literal["train", "heldout"], count: int, length: int) -> Tensor:
    """The beginnings of files of at least so many tokens, (count, length)."""
    tokens = (words(document.text)["input_ids"] for document in open_corpus("builtin:python", side))
    return torch.tensor(list(islice((ids[:length] for ids in tokens if len(ids) >= length), count)))


@torch.no_grad()
def _nats(model: PreTrainedModel, windows: Tensor, context: int, shortest: int) -> float:
    """Mean cost of the tokens that even the shortest context predicts from something."""
    rows = windows.reshape(-1, context)
    scored = torch.arange(windows.shape[1]).expand_as(windows).reshape(-1, context) % shortest != 0
    total = 0.0
    for inputs in torch.split(rows, max(1, 4096 // context)):
        logits = model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
        costs = F.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        total += float((costs * scored[0].repeat(len(inputs), 1)[:, 1:].flatten()).sum())
    return total / int(scored[:, 1:].sum())


def _sparse_model(setting: _Setting) -> dict[str, float]:
    """Nats a token of the shipped model with dense attention and with two layouts, and their densities."""
    subject = load("pocket")
    length = min(512, setting.contexts[-1])
    windows = _beginnings(subject.tokenizer, "heldout", setting.windows, length)
    figures = {"pocket, dense: nats": _nats(subject.model, windows, length, length)}
    rules: dict[str, Callable[[int], BlockLayout]] = {
        "local and global": lambda size: BlockLayout.local(size, _BLOCK, 3) | BlockLayout.global_(size, _BLOCK, 1),
        "butterfly": lambda size: BlockLayout.butterfly(size, _BLOCK),
    }
    for name, rule in rules.items():
        with sparse_attention(subject.model, rule):
            figures[f"pocket, {name}: nats"] = _nats(subject.model, windows, length, length)
        figures[f"pocket, {name}: density"] = rule(length).density(causal=True)
    return figures


PAPER = Paper(
    name="flash_attention",
    title="FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
    reference="arXiv 2205.14135",
    claims=(
        Claim(
            name="exact",
            statement="FlashAttention is exact: its largest error beside float64 is below 2e-6, float32's rounding.",
            metric="flash: error",
            baseline="textbook: error",
            effect="value",
            threshold=2e-6,
        ),
        Claim(
            name="faster",
            statement="A forward and backward pass is faster than textbook attention's (5.7 times on an A100).",
            metric="flash, short: seconds",
            baseline="textbook, short: seconds",
            effect="ratio",
            paper_value=7.3 / 41.7,
        ),
        Claim(
            name="faster, twice the length",
            statement="The same at twice the length.",
            metric="flash, long: seconds",
            baseline="textbook, long: seconds",
            effect="ratio",
        ),
        Claim(
            name="linear memory",
            statement="Memory is linear in length.",
            metric="flash: slope of memory",
            effect="value",
            paper_value=1.0,
            tolerance=0.25,
        ),
        Claim(
            name="memory of the textbook",
            statement="(Control.) Textbook attention's memory is quadratic in length.",
            metric="textbook: slope of memory",
            effect="value",
            paper_value=2.0,
            tolerance=0.25,
        ),
        Claim(
            name="fewer accesses",
            statement="Fewer elements move between slow and fast memory than in standard attention.",
            metric="flash: elements",
            baseline="standard: elements",
            effect="ratio",
            paper_value=4.4 / 40.3,
        ),
        Claim(
            name="fewer accesses, block-sparse",
            statement="Block-sparse attention moves fewer still.",
            metric="butterfly: elements",
            baseline="flash 2, long: elements",
            effect="ratio",
        ),
        Claim(
            name="faster, block-sparse",
            statement="Block-sparse attention is faster than FlashAttention (2.8 against 2.4 times the baseline).",
            metric="sparse, long: seconds",
            baseline="flash, long: seconds",
            effect="ratio",
            paper_value=2.4 / 2.8,
        ),
        Claim(
            name="longer context",
            statement="Four times the context gives a lower perplexity (0.7 lower on GPT-2 from 1K to 4K).",
            metric="context middle: nats",
            baseline="context short: nats",
            unit="nats a token",
            paper_value=math.log(17.5 / 18.2),
        ),
        Claim(
            name="longest context",
            statement="And the longest context a lower one than the middle.",
            metric="context long: nats",
            baseline="context middle: nats",
            unit="nats a token",
        ),
        Claim(
            name="sparse quality, local and global",
            statement="Block-sparse attention keeps dense attention's quality (0.05 nats): local and global blocks.",
            metric="pocket, local and global: nats",
            baseline="pocket, dense: nats",
            unit="nats a token",
            threshold=0.05,
        ),
        Claim(
            name="sparse quality, butterfly",
            statement="Block-sparse attention keeps dense attention's quality (0.05 nats): butterfly blocks.",
            metric="pocket, butterfly: nats",
            baseline="pocket, dense: nats",
            unit="nats a token",
            threshold=0.05,
        ),
    ),
    measure=measure,
    note=(
        "The paper trains with block-sparse attention; here it replaces the dense attention of a trained model, which "
        "is harder. Elements are counted for a forward pass of one head of 1,024 tokens, with fast memory for 51,200. "
        "The paper's bytes were measured over both passes. Decoders of every context see equally many tokens."
    ),
)
