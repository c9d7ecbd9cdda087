"""ComplexFormer: head-specific complex vector attention (arXiv 2505.10222, withdrawn by its first author).

The paper's text and tables are gone and its public code leaks the future, so no figure of it is compared. What is left
is the abstract's direction (better than rotary attention) and the formula. Everything here is our own evidence, with
the controls that tell what a difference comes from.

Small decoders read Python source byte by byte. All arms see the same batches, and what they share begins with the same
weights. The author starts delta near 0, where the phase of queries and keys hardly counts; so beside the paper's arms
stand one that freezes delta at 0 and one that starts at rotary attention. Rotary attention, the author's and the frozen
one are also trained three times as long, scored on bytes beyond the trained length, and trained on recall in context
(induction). The longer trained rotary decoder is then given phases and tunes nothing else on C++ headers, beside LoRA
of as many parameters.

Rates were chosen on seed 100. Of 0.001, 0.002 and 0.004 the last was best for rotary attention, for `complex` and for
delta frozen at 0 alike (at width 128), and serves all arms. Recall has one rate for all, at which rotary attention
learns the task. For the second text phases had four to choose from, 0.01 to 0.3, and LoRA four, 0.003 to 0.1; both did
best at the largest.
"""

import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from perplab.claims.byte_text import BYTES, Bytes, byte_batches, bytes_of, nats_by_position
from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.sequence_training import train_on
from perplab.models.complex_conversion import convert_to_complex, train_only_phases
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.phase_analysis import phases, position_share
from perplab.text import IGNORED_LABEL
from perplab.text.synthetic import induction

Arm = Mapping[str, Any]

_LAYERS, _HEADS, _WIDTH = 2, 3, 96


def _complex(**options: Any) -> Arm:
    return {"token_mixers": ["complex"] * _LAYERS, "mixer_options": {"complex": options}}


_FROZEN = {"learn_delta": False, "learn_bias": False}
_ARMS: Mapping[str, Arm] = {
    "rotary": {},
    "learned positions": {"position_encoding": "learned"},
    "no positions": {"position_encoding": "none"},
    "EulerFormer": _complex(per="shared", init="rope"),
    "complex from rotary": _complex(init="rope"),
    "complex": _complex(init="author"),
    "delta 0, frozen": _complex(init="zero", **_FROZEN),
    "delta alone": _complex(init="author", learn_bias=False),
    "b alone": _complex(init="rope", learn_delta=False),
    "one delta a head": _complex(init="author", per="head"),
    "temperatures": _complex(init="rope", learn_temperature=True, **_FROZEN),
}
"""Changes of a rotary decoder. `temperatures` learns a factor for each pair of each head and no phase."""
_CONTENDERS = ("rotary", "complex", "delta 0, frozen")
_LONG = 3
_RECALL_LENGTH = 16
_RATE = 4e-3
_RECALL_RATE = 2e-3
_PHASE_RATE = 0.3
_LORA_RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        train_bytes: of each corpus.
        heldout_bytes: that are scored, of each corpus.
        length: bytes in a row.
        rows: in a batch.
        steps: of the short budget.
        recall_steps: on the induction task.
        tuning_steps: on the second corpus.
        timed_steps: of each mixer.
    """

    train_bytes: int
    heldout_bytes: int
    length: int
    rows: int
    steps: int
    recall_steps: int
    tuning_steps: int
    timed_steps: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        train_bytes=50_000,
        heldout_bytes=2_000,
        length=32,
        rows=2,
        steps=2,
        recall_steps=2,
        tuning_steps=2,
        timed_steps=2,
    ),
    "pocket": _Setting(
        train_bytes=4_000_000,
        heldout_bytes=60_000,
        length=128,
        rows=8,
        steps=200,
        recall_steps=300,
        tuning_steps=60,
        timed_steps=12,
    ),
    "gpu": _Setting(
        train_bytes=50_000_000,
        heldout_bytes=1_000_000,
        length=512,
        rows=64,
        steps=3_000,
        recall_steps=3_000,
        tuning_steps=500,
        timed_steps=30,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Nats a byte of all arms, also beyond the trained length and after tuning; accuracy of recall; time of a step."""
    setting = _SETTINGS[scale]
    text, heldout = _texts("builtin:python", setting)
    figures: dict[str, float] = {}
    for name in _ARMS:
        model = _trained(name, seed, text, setting, setting.steps)
        figures[f"{name}: nats"] = _nats(model, heldout, setting)
    for name in _CONTENDERS:
        model = _trained(name, seed, text, setting, _LONG * setting.steps)
        figures |= _long_figures(name, model, heldout, setting)
        if name == "rotary":
            figures |= _tuned(model, seed, setting)
        figures[f"{name}: recall"] = _recall(name, seed, setting)
    for budget in ("", ", long"):
        figures[f"lead{budget}"] = figures[f"rotary{budget}: nats"] - figures[f"complex{budget}: nats"]
    figures["time of a step"] = _step_time_ratio(seed, text, setting)
    return figures


def _decoder(name: str, seed: int, vocab_size: int, length: int) -> DecoderForCausalLM:
    """An arm at its start; what it has in common with the others has the same weights."""
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": _WIDTH,
        "intermediate_size": 3 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": length,
        "initializer_range": _WIDTH**-0.5,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        common = DecoderForCausalLM(DecoderConfig(**shape))
        model = DecoderForCausalLM(DecoderConfig(**shape, **_ARMS[name]))
    model.load_state_dict(common.state_dict(), strict=False)
    return model


def _trained(name: str, seed: int, text: Bytes, setting: _Setting, steps: int) -> DecoderForCausalLM:
    model = _decoder(name, seed, BYTES, setting.length)
    train_on(
        model, byte_batches(text, seed, rows=setting.rows, length=setting.length), steps=steps, learning_rate=_RATE
    )
    return model


def _long_figures(name: str, model: DecoderForCausalLM, heldout: Bytes, setting: _Setting) -> dict[str, float]:
    """Costs after the long budget, within the trained length and beyond, and what the phases have become."""
    beyond = nats_by_position(model, heldout, 4 * setting.length)
    figures = {
        f"{name}, long: nats": _nats(model, heldout, setting),
        f"{name}, to twice the length: nats": float(beyond[setting.length : 2 * setting.length].mean()),
        f"{name}, further: nats": float(beyond[2 * setting.length :].mean()),
    }
    if name == "complex":
        rows = phases(model)
        figures["complex: mean of delta"] = statistics.fmean(row.delta for row in rows)
        figures["complex: deviation of delta"] = statistics.fmean(row.delta_deviation for row in rows)
    shown = model if name != "rotary" else convert_to_complex(copy.deepcopy(model))
    text = torch.from_numpy(heldout[: 8 * setting.length].reshape(8, -1))
    figures[f"{name}: share of position"] = float(position_share(shown, text).mean())
    return figures


def _tuned(rotary: DecoderForCausalLM, seed: int, setting: _Setting) -> dict[str, float]:
    """Costs of C++ before and after tuning phases, or as many parameters of LoRA, on it."""
    text, heldout = _texts("builtin:cpp", setting)
    figures = {"untuned: nats": _nats(rotary, heldout, setting)}
    converted = convert_to_complex(copy.deepcopy(rotary))
    train_only_phases(converted)
    contenders: dict[str, tuple[PreTrainedModel, float]] = {"phases": (converted, _PHASE_RATE)}
    for target in ("q_proj", "v_proj"):
        contenders[f"LoRA on {target}"] = (_with_lora(copy.deepcopy(rotary), target, seed), _LORA_RATE)
    for name, (model, rate) in contenders.items():
        batches = byte_batches(text, seed, rows=setting.rows, length=setting.length)
        train_on(model, batches, steps=setting.tuning_steps, learning_rate=rate, weight_decay=0.0)
        figures[f"{name}: nats"] = _nats(model, heldout, setting)
        figures[f"{name}: parameters"] = sum(part.numel() for part in model.parameters() if part.requires_grad)
    return figures


def _with_lora(model: DecoderForCausalLM, target: str, seed: int) -> PreTrainedModel:
    """LoRA of rank 1 in the last layer: twice the width in parameters, as many as all phases of both layers."""
    from peft import LoraConfig, get_peft_model

    place = rf"model\.layers\.{_LAYERS - 1}\.self_attn\.{target}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: PreTrainedModel = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=place))
    return adapted


def _recall(name: str, seed: int, setting: _Setting) -> float:
    """Accuracy on new rows of the induction task, half of whose tokens stand again at a random distance."""
    sizes = {"length": _RECALL_LENGTH, "vocab_size": _RECALL_LENGTH}
    rng = np.random.default_rng(seed)
    model = _decoder(name, seed, _RECALL_LENGTH, _RECALL_LENGTH)
    batches = (induction(rng, 8 * setting.rows, **sizes) for _ in range(setting.recall_steps))
    train_on(model, batches, steps=setting.recall_steps, learning_rate=_RECALL_RATE)
    input_ids, labels = induction(np.random.default_rng(10_000 + seed), 256, **sizes)
    with torch.inference_mode():
        said = model(torch.from_numpy(input_ids), use_cache=False).logits.argmax(-1).numpy()
    asked = labels != IGNORED_LABEL
    return float((said == labels)[asked].mean())


def _step_time_ratio(seed: int, text: Bytes, setting: _Setting) -> float:
    """Time of a training step of complex attention over one of rotary attention, taken in turn."""
    models = {name: _decoder(name, seed, BYTES, setting.length) for name in ("rotary", "complex")}
    taken: dict[str, list[float]] = {name: [] for name in models}
    batches = byte_batches(text, seed, rows=setting.rows, length=setting.length)
    for _ in range(setting.timed_steps):
        batch = next(batches)
        for name, model in models.items():
            started = time.perf_counter()
            train_on(model, [batch], steps=1, learning_rate=_RATE)
            taken[name].append(time.perf_counter() - started)
    return statistics.median(taken["complex"]) / statistics.median(taken["rotary"])


def _texts(corpus: str, setting: _Setting) -> tuple[Bytes, Bytes]:
    return bytes_of(corpus, "train", setting.train_bytes), bytes_of(corpus, "heldout", setting.heldout_bytes)


def _nats(model: PreTrainedModel, heldout: Bytes, setting: _Setting) -> float:
    return float(nats_by_position(model, heldout, setting.length).mean())


_ABSTRACT = "(Abstract, withdrawn.)"
_CONTROL = "(Control.)"
_CHEAPER: tuple[tuple[str, str, str, str], ...] = (
    ("beside rotary", "complex", "rotary", f"{_ABSTRACT} Complex attention predicts better than rotary attention."),
    (
        *("beside rotary, three times as long", "complex, long", "rotary, long"),
        f"{_ABSTRACT} Complex attention predicts better than rotary attention, after three times the steps.",
    ),
    (
        *("beside learned positions", "complex", "learned positions"),
        f"{_ABSTRACT} Complex attention predicts better than learned absolute positions.",
    ),
    (
        *("beside EulerFormer", "complex", "EulerFormer"),
        "(Withdrawn.) A delta for each pair of each head does better than one shared by all.",
    ),
    (
        *("started at rotary", "complex from rotary", "rotary"),
        f"{_CONTROL} Delta and b that start at rotary attention lower the cost as well.",
    ),
    (
        *("nothing learned", "delta 0, frozen", "rotary"),
        f"{_CONTROL} Delta frozen at 0, nothing learned, already costs less than rotary attention.",
    ),
    (
        *("beside nothing learned", "complex", "delta 0, frozen"),
        f"{_CONTROL} Learning delta and b does better than freezing delta at 0.",
    ),
    (
        *("beside nothing learned, three times as long", "complex, long", "delta 0, frozen, long"),
        f"{_CONTROL} Learning delta and b does better than freezing delta at 0, after three times the steps.",
    ),
    (
        *("beside one delta a head", "complex", "one delta a head"),
        f"{_CONTROL} A delta for each pair does better than one a head.",
    ),
    (
        *("beside temperatures", "complex", "temperatures"),
        f"{_CONTROL} Phases do better than a learned temperature of rotary attention for each pair of each head.",
    ),
    ("b counts", "complex", "delta alone", f"{_CONTROL} Learning b as well as delta lowers the cost."),
    ("positions count", "complex", "no positions", f"{_CONTROL} Complex attention does better than no positions."),
    (
        *("twice the length", "complex, to twice the length", "rotary, to twice the length"),
        f"{_ABSTRACT} Long contexts: bytes up to twice the trained length cost less than with rotary attention.",
    ),
    (
        *("beyond twice the length", "complex, further", "rotary, further"),
        f"{_ABSTRACT} Long contexts: bytes beyond twice the trained length cost less than with rotary attention.",
    ),
    (
        *("phases alone are tuned", "phases", "untuned"),
        "(Ours.) A trained rotary decoder, given phases and tuned in nothing else, costs less on other text.",
    ),
    (
        *("phases beside LoRA on queries", "phases", "LoRA on q_proj"),
        f"{_CONTROL} Tuned phases do better than LoRA of as many parameters on the queries of the last layer.",
    ),
    (
        *("phases beside LoRA on values", "phases", "LoRA on v_proj"),
        f"{_CONTROL} Tuned phases do better than LoRA of as many parameters on the values of the last layer.",
    ),
)
"""Name, what should cost less, than what, and the statement."""


def _claims() -> Iterator[Claim]:
    for name, metric, baseline, statement in _CHEAPER:
        yield Claim(
            name=name,
            statement=statement,
            metric=f"{metric}: nats",
            baseline=f"{baseline}: nats",
            unit="nats a byte",
        )
    yield Claim(
        name="the lead lasts",
        statement=f"{_CONTROL} The lead over rotary attention is no smaller after three times the steps.",
        metric="lead, long",
        baseline="lead",
        better="higher",
        unit="nats a byte",
    )
    yield Claim(
        name="recall",
        statement=f"{_ABSTRACT} Better reasoning: complex attention continues more repetitions than rotary attention.",
        metric="complex: recall",
        baseline="rotary: recall",
        better="higher",
        unit="accuracy",
    )
    yield Claim(
        name="time of a step",
        statement="(Ours.) As a map of queries and keys, a training step takes less than 1.5 times rotary attention's.",
        metric="time of a step",
        effect="value",
        threshold=1.5,
        unit="times",
    )


PAPER = Paper(
    name="complexformer",
    title=(
        "ComplexFormer: Disruptively Advancing Transformer Inference Ability via Head-Specific Complex Vector Attention"
    ),
    reference="arXiv 2505.10222 (withdrawn)",
    claims=tuple(_claims()),
    measure=measure,
    note=(
        "The paper was withdrawn by its first author twelve days after it appeared. Its results could not be read any "
        "more, and its public code trains with a leak of the future, so nothing here reproduces a figure of it. The "
        "formula is implemented causally, scores are divided by the root of the head size, and statements marked "
        "withdrawn give the abstract's direction alone."
    ),
)
