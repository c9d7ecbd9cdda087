"""Parallelizing linear transformers with the delta rule over sequence length (Yang et al., arXiv 2406.06484).

Four things are measured. A state without training is written and read back. Small models of each mixer learn to recall,
on generated rows: keys bound to several values in turn, then asked for their last one ("rebinding"), and the
write-once task of the paper, MQAR. Models of equal shape are trained on equal bytes of Python source, and their cost is
taken on held-out text. And the rule is timed, by chunks and a token at a time.

Every mixer of a seed has the same seed, batches and settings. Linear attention is the same layer with the rule
replaced, so what separates it from DeltaNet is the rule.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.sequence_training import train_on
from perplab.kernels import delta_rule, delta_rule_reference, linear_attention
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.text import IGNORED_LABEL, open_corpus
from perplab.text.synthetic.rebinding import rebinding
from perplab.text.synthetic.recall_tasks import Rows, mqar
from perplab.training import new_decoder
from perplab.training.config import MixerName
from perplab.training.presets import token_mixers

_RECALL_LAYERS = {
    "DeltaNet": ["deltanet", "deltanet"],
    "linear attention": ["linear", "linear"],
    "softmax attention": ["softmax", "softmax"],
    "hybrid": ["deltanet", "sliding"],
}
_LANGUAGE_MODELS: Mapping[str, tuple[MixerName, dict[str, Any]]] = {
    "Transformer": ("softmax", {}),
    "linear attention": ("linear", {}),
    "RetNet": ("retnet", {}),
    "DeltaNet": ("deltanet", {}),
    "DeltaNet without convolution": ("deltanet", {"conv_size": 0}),
    "DeltaNet, ELU and L2 norm": ("deltanet", {"qk_activation": "elu+1"}),
    "DeltaNet, ELU and sum norm": ("deltanet", {"qk_activation": "elu+1", "qk_norm": "sum"}),
    "sliding hybrid": ("hybrid", {}),
    "global hybrid": ("hybrid-global", {}),
}
_ROW = 256
"""Bytes in a row of text."""
_RECALL_VOCABULARY = 128
_TASKS: Mapping[str, Callable[[np.random.Generator, int], Rows]] = {
    "rebinding": lambda rng, rows: rebinding(rng, rows, keys=8, bindings=3, vocab_size=_RECALL_VOCABULARY),
    "MQAR": lambda rng, rows: mqar(rng, rows, length=64, pairs=8, vocab_size=_RECALL_VOCABULARY),
}


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        recall_steps: of training on each task, 32 rows each.
        tested_rows: of each task.
        layers: of the language models.
        hidden_size: of the language models.
        text_steps: of training them, 4 rows each.
        heldout_rows: that are scored.
        timed_tokens: of the comparison with the recurrence.
    """

    recall_steps: int
    tested_rows: int
    layers: int
    hidden_size: int
    text_steps: int
    heldout_rows: int
    timed_tokens: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        recall_steps=1, tested_rows=16, layers=2, hidden_size=32, text_steps=1, heldout_rows=2, timed_tokens=256
    ),
    "pocket": _Setting(
        recall_steps=400,
        tested_rows=256,
        layers=4,
        hidden_size=128,
        text_steps=110,
        heldout_rows=100,
        timed_tokens=1024,
    ),
    "gpu": _Setting(
        recall_steps=2000,
        tested_rows=1024,
        layers=12,
        hidden_size=512,
        text_steps=20_000,
        heldout_rows=2000,
        timed_tokens=1024,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Shares of right answers, nats a token, and ratios of time and memory."""
    setting = _SETTINGS[scale]
    return stored(seed) | recalled(setting, seed) | modelled(setting, seed) | timed(setting.timed_tokens)


def stored(seed: int) -> dict[str, float]:
    """Shares of pairs that a state returns: 16 keys each written 4 times, with the last value the right one."""
    generator = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(50, 1, 16, 64, generator=generator), dim=-1).repeat(1, 1, 4, 1)
    values = torch.randn(50, 1, 64, 64, generator=generator)
    _, corrected = delta_rule(keys, keys, values, torch.ones(50, 1, 64))
    _, added = linear_attention(keys, keys, values)
    return {
        f"state, {name}: right": returned(state, keys, values)
        for name, state in (("delta rule", corrected), ("sum", added))
    }


def returned(state: Tensor, keys: Tensor, values: Tensor) -> float:
    """The share of the last 16 keys whose reading is closer to their own value than to any other that was written."""
    nearest = torch.cdist(keys[:, :, -16:] @ state, values).argmin(dim=-1)
    return float((nearest == torch.arange(keys.shape[2] - 16, keys.shape[2])).float().mean())


def recalled(setting: _Setting, seed: int) -> dict[str, float]:
    """Shares of right answers of each mixer in each task, on rows it was not trained on."""
    figures = {}
    for task, make in _TASKS.items():
        test = make(np.random.default_rng([seed, 1]), setting.tested_rows)
        for name, layers in _RECALL_LAYERS.items():
            rng = np.random.default_rng([seed, 0])
            model = _small_model(layers, seed)
            batches = (make(rng, 32) for _ in repeat(None))
            train_on(model, batches, steps=setting.recall_steps, learning_rate=5e-3)
            figures[f"{task}, {name}: right"] = _share_right(model, test)
    return figures


def _small_model(layers: list[str], seed: int) -> DecoderForCausalLM:
    return new_decoder(
        DecoderConfig(
            vocab_size=_RECALL_VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=len(layers),
            num_attention_heads=2,
            token_mixers=layers,
            sliding_window=16,
            initializer_range=64**-0.5,
        ),
        seed,
    )


@torch.inference_mode()
def _share_right(model: DecoderForCausalLM, test: Rows) -> float:
    input_ids, labels = (torch.from_numpy(part) for part in test)
    asked = labels != IGNORED_LABEL
    answers = model(input_ids, use_cache=False).logits.argmax(dim=-1)
    return float((answers == labels)[asked].float().mean())


def modelled(setting: _Setting, seed: int) -> dict[str, float]:
    """Nats a held-out byte of language models that differ in nothing but what mixes their tokens."""
    text = text_bytes("train", _ROW * 4 * setting.text_steps + 1_000_000)
    heldout = text_rows(text_bytes("heldout", (_ROW + 1) * setting.heldout_rows), np.arange(setting.heldout_rows))
    figures = {}
    for name, (mixer, options) in _LANGUAGE_MODELS.items():
        rng = np.random.default_rng([seed, 2])
        rows_in_all = len(text) // (_ROW + 1)
        batches = (text_rows(text, rng.integers(rows_in_all, size=4)) for _ in repeat(None))
        model = _language_model(setting, mixer, options, seed)
        train_on(model, batches, steps=setting.text_steps, learning_rate=3e-3)
        figures[f"{name}: nats"] = _nats(model, heldout)
    return figures


def text_bytes(split: Literal["train", "heldout"], size: int) -> NDArray[np.int64]:
    """The first bytes of a side of `builtin:python`."""
    documents = open_corpus("builtin:python", split).limited(size)
    joined = "\0".join(document.text for document in documents).encode()
    return np.frombuffer(joined[:size], dtype=np.uint8).astype(np.int64)


def text_rows(text: NDArray[np.int64], places: NDArray[np.int64]) -> Rows:
    """Rows of a text and what follows each byte."""
    rows = text[(places * (_ROW + 1))[:, None] + np.arange(_ROW + 1)]
    return rows[:, :-1], rows[:, 1:]


def _language_model(setting: _Setting, mixer: MixerName, options: dict[str, Any], seed: int) -> DecoderForCausalLM:
    return new_decoder(
        DecoderConfig(
            vocab_size=256,
            hidden_size=setting.hidden_size,
            intermediate_size=8 * setting.hidden_size // 3,
            num_hidden_layers=setting.layers,
            num_attention_heads=max(2, setting.hidden_size // 64),
            token_mixers=token_mixers(mixer, setting.layers),
            mixer_options={mixer: options} if options else {},
            sliding_window=_ROW // 4,
            initializer_range=setting.hidden_size**-0.5,
        ),
        seed,
    )


@torch.inference_mode()
def _nats(model: DecoderForCausalLM, rows: Rows) -> float:
    """Mean cost of a byte."""
    total = 0.0
    for inputs, labels in zip(*(torch.split(torch.from_numpy(part), 8) for part in rows), strict=True):
        position_ids = torch.arange(inputs.shape[1]).expand(len(inputs), -1)
        total += float(model.token_losses(inputs, position_ids, labels).nll.sum())
    return total / rows[1].size


def timed(length: int) -> dict[str, float]:
    """How much quicker training is by chunks, and how much more a longer text leaves in a cache."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = F.normalize(torch.randn(3, 1, 4, length, 64, generator=generator), dim=-1)
    beta = torch.rand(1, 4, length, generator=generator)
    seconds = {
        rule: min(_seconds(rule, query, key, value, beta) for _ in range(2))
        for rule in (delta_rule, delta_rule_reference)
    }
    model = _small_model(["deltanet", "deltanet"], 0).eval()
    tokens = torch.zeros(1, 1024, dtype=torch.int64)
    with torch.inference_mode():
        few, many = (model(tokens[:, :end], use_cache=True).past_key_values.num_bytes for end in (16, 1024))
    return {
        "recurrence over chunks: time": seconds[delta_rule_reference] / seconds[delta_rule],
        "cache after 1024 tokens over 16: bytes": many / few,
    }


def _seconds(rule: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> float:
    """Wall time of a forward and a backward pass."""
    leaves = [states.detach().requires_grad_() for states in inputs]
    started = time.perf_counter()
    torch.autograd.grad(rule(*leaves)[0].sum(), leaves)
    return time.perf_counter() - started


def _cheaper(one: str, other: str, statement: str, paper: float | None = None) -> Claim:
    return Claim(
        name=f"{one} against {other}",
        statement=statement,
        metric=f"{one}: nats",
        baseline=f"{other}: nats",
        unit="nats a byte",
        paper_value=paper,
    )


def _more_right(task: str, one: str, other: str, statement: str) -> Claim:
    return Claim(
        name=f"{task}: {one} against {other}",
        statement=statement,
        metric=f"{task}, {one}: right",
        baseline=f"{task}, {other}: right",
        better="higher",
    )


def _claims() -> Iterator[Claim]:
    yield Claim(
        name="State: values rewritten",
        statement="The delta rule replaces the value at a key; a sum keeps them all.",
        metric="state, delta rule: right",
        baseline="state, sum: right",
        better="higher",
    )
    for task in _TASKS:
        other = "linear attention"
        yield _more_right(task, "DeltaNet", other, f"{task}: DeltaNet recalls more than {other}.")
        yield _more_right(task, "hybrid", "DeltaNet", f"(Control.) {task}: a layer of window attention adds to it.")
    yield Claim(
        name="MQAR is solved",
        statement="DeltaNet recalls perfectly in the hardest setting of MQAR (here an easy one).",
        metric="MQAR, DeltaNet: right",
        effect="value",
        better="higher",
        threshold=0.95,
        paper_value=1.0,
    )
    yield _cheaper("DeltaNet", "linear attention", "The delta rule lowers perplexity against linear attention.")
    yield _cheaper("DeltaNet", "RetNet", "DeltaNet has a lower perplexity than RetNet.", -0.135)
    yield _cheaper(
        "DeltaNet",
        "DeltaNet without convolution",
        "Short convolutions lower the perplexity.",
        -0.029,
    )
    yield _cheaper(
        "DeltaNet, ELU and L2 norm",
        "DeltaNet, ELU and sum norm",
        "Dividing keys and queries by their length is better than by their sum.",
        -0.105,
    )
    yield Claim(
        name="SiLU against ELU",
        statement="Once keys have unit length the activation hardly matters: SiLU is 0.007 nats worse than 1 + ELU.",
        metric="DeltaNet: nats",
        baseline="DeltaNet, ELU and L2 norm: nats",
        unit="nats a byte",
        paper_value=0.007,
        tolerance=0.02,
    )
    yield _cheaper("sliding hybrid", "Transformer", "With window attention it is better than a Transformer.", -0.048)
    yield _cheaper("global hybrid", "Transformer", "With two layers of attention it is better too.", -0.031)
    yield _cheaper("sliding hybrid", "DeltaNet", "Window attention in every second layer lowers perplexity.", -0.043)
    yield _cheaper("global hybrid", "DeltaNet", "Global attention in two layers lowers perplexity.", -0.026)
    yield Claim(
        name="DeltaNet alone against Transformer",
        statement="DeltaNet alone does not beat the Transformer: at 1.3 B the two are equal.",
        metric="DeltaNet: nats",
        baseline="Transformer: nats",
        better="higher",
        unit="nats a byte",
        paper_value=0.001,
    )
    yield Claim(
        name="Chunks against recurrence",
        statement="Training by chunks is many times quicker than the recurrence, up to 30 times.",
        metric="recurrence over chunks: time",
        effect="value",
        better="higher",
        threshold=10.0,
    )
    yield Claim(
        name="Constant memory",
        statement="What generation keeps does not grow with the text.",
        metric="cache after 1024 tokens over 16: bytes",
        effect="value",
        paper_value=1.0,
        tolerance=1e-9,
    )


PAPER = Paper(
    name="deltanet",
    title="Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    reference="arXiv 2406.06484",
    claims=tuple(_claims()),
    measure=measure,
    note=(
        "The paper's figures for perplexity are differences of log WikiText perplexity (nats a token) of its 340 M "
        "models on 15 B tokens, and of its 1.3 B models for DeltaNet alone; ours are nats a byte of Python source, of "
        "models with less than a million parameters and minutes of training. The baselines have DeltaNet's layer, with "
        "convolutions; the paper's RetNet has none, and its own layer. The recurrence that chunks are timed against is "
        "a loop in Python, the paper's a fused kernel. Rebinding is our task: write-once MQAR is known not to separate "
        "the rules at this size."
    ),
)
