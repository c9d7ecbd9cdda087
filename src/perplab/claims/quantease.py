"""QuantEase: optimization-based quantization for language models (Behdin et al., arXiv 2309.01885).

Two trained models, a Llama (the shipped `pocket`) and a small GPT-2 trained for each seed, are rounded to 2, 3 and 4
bits by every method on one kind of grid: min-max, asymmetric, a scale a row. SpQR brings its own grid of groups of 16
with 3-bit scales, so it spends more bits; what it spends is among the figures. A seed draws the calibration windows,
trains the GPT-2 and starts nothing else. Costs are nats a token on held-out text, the same for all.

Beside the paper's method (coordinate descent from the unrounded weights) stands the one that perplab takes by default:
coordinate descent from GPTQ's result. GPTQ with activation order is the baseline that the paper's tables lack.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained, trained_gpt2
from perplab.compression import QuantizeConfig, quantize
from perplab.models import LanguageModel, load
from perplab.scoring import score
from perplab.text import Document, open_corpus
from perplab.training import TrainConfig

_BITS = (2, 3, 4)
_METHODS = {
    "RTN": QuantizeConfig(method="rtn"),
    "AWQ": QuantizeConfig(method="awq"),
    "GPTQ": QuantizeConfig(method="gptq"),
    "GPTQ in activation order": QuantizeConfig(method="gptq", act_order=True),
    "SpQR": QuantizeConfig(method="spqr"),
    "QuantEase": QuantizeConfig(method="quantease", start="weights"),
    "QuantEase from GPTQ": QuantizeConfig(method="quantease", start="gptq"),
    "QuantEase, 1 % outliers": QuantizeConfig(method="quantease", outliers=0.01),
    "QuantEase, 1 % outlier columns": QuantizeConfig(method="quantease", outliers=0.01, outlier_columns=True),
}
_LARGEST_DOCUMENT = 30_000
"""Bytes: one long file would be most of a small sample."""
_CALIBRATION_BYTES = 1_000_000
_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        corpus: what models are trained, calibrated and measured on.
        training: of the GPT-2.
        windows: of calibration.
        heldout_bytes: that are scored.
        sweeps: of coordinate descent.
    """

    corpus: str
    training: TrainConfig
    windows: int
    heldout_bytes: int
    sweeps: int


_SMALL = TrainConfig(tokens=16_384, num_hidden_layers=1, hidden_size=64, block_size=_LENGTH, compile=False)
_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(corpus="builtin:python", training=_SMALL, windows=2, heldout_bytes=2_000, sweeps=3),
    "pocket": _Setting(
        corpus="builtin:all",
        training=TrainConfig(tokens=2_000_000, num_hidden_layers=4, hidden_size=192, block_size=_LENGTH),
        windows=48,
        heldout_bytes=150_000,
        sweeps=30,
    ),
    "gpu": _Setting(
        corpus="builtin:all",
        training=TrainConfig(tokens=40_000_000, num_hidden_layers=8, hidden_size=512, block_size=_LENGTH),
        windows=128,
        heldout_bytes=1_000_000,
        sweeps=30,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Nats a token and mean relative error of the layers, for each model, width and method."""
    setting = _SETTINGS[scale]
    training = replace(setting.training, seed=seed)
    subjects = {
        "Llama": trained(setting.corpus, training, tokenizer="pocket") if scale == "smoke" else load("pocket"),
        "GPT-2": trained_gpt2(setting.corpus, training),
    }
    calibration = list(open_corpus(setting.corpus, "train").limited(_CALIBRATION_BYTES))
    heldout = _heldout(setting.corpus, setting.heldout_bytes)
    figures: dict[str, float] = {}
    for name, subject in subjects.items():
        figures[f"{name}: nats"] = _nats(subject, heldout)
        for bits, method in product(_BITS, _METHODS):
            config = replace(
                _METHODS[method], bits=bits, windows=setting.windows, length=_LENGTH, sweeps=setting.sweeps, seed=seed
            )
            rounded = quantize(subject, calibration, config)
            place = f"{name}, {bits} bits, {method}"
            figures[f"{place}: nats"] = _nats(rounded, heldout)
            made = rounded.lineage.figures if rounded.lineage else {}
            figures[f"{place}: error"] = made["relative error"]
            figures[f"{place}: bits"] = made["bits per weight"]
    return figures


def _heldout(corpus: str, size: int) -> list[Document]:
    """Held-out documents of so many bytes in all."""
    chosen, read = [], 0
    for document in open_corpus(corpus, "heldout"):
        if len(document.text) < _LARGEST_DOCUMENT:
            chosen.append(document)
            read += len(document.text)
        if read >= size:
            break
    return chosen


def _nats(subject: LanguageModel, documents: list[Document]) -> float:
    """Mean cost of a token."""
    return float(np.mean(score(subject, documents).tokens["nll"].to_numpy()))


def _cheaper(place: str, ours: str, theirs: str, statement: str) -> Claim:
    return Claim(
        name=f"{place}: {ours} against {theirs}",
        statement=f"{place}: {statement}",
        metric=f"{place}, {ours}: nats",
        baseline=f"{place}, {theirs}: nats",
        unit="nats a token",
    )


def _claims() -> Iterator[Claim]:
    outliers = "QuantEase, 1 % outliers"
    for name, bits in product(("Llama", "GPT-2"), _BITS):
        place = f"{name}, {bits} bits"
        yield Claim(
            name=f"{place}: layers, from GPTQ",
            statement=f"{place}: Coordinate descent that starts at GPTQ's result lowers the layers' error further.",
            metric=f"{place}, QuantEase from GPTQ: error",
            baseline=f"{place}, GPTQ: error",
            effect="ratio",
        )
        yield _cheaper(place, "QuantEase", "GPTQ", "QuantEase gives a lower perplexity than GPTQ, by up to 15 %.")
        yield _cheaper(place, "QuantEase", "RTN", "QuantEase gives a lower perplexity than rounding to the nearest.")
        yield _cheaper(place, "QuantEase", "AWQ", "QuantEase gives a lower perplexity than AWQ.")
        control = "(Control.) QuantEase from GPTQ gives a lower perplexity than GPTQ in activation order."
        yield _cheaper(place, "QuantEase from GPTQ", "GPTQ in activation order", control)
        if bits == max(_BITS):
            continue
        yield _cheaper(place, outliers, "QuantEase", "Keeping 1 % of the weights lowers the perplexity further.")
        columns = "QuantEase, 1 % outlier columns"
        yield _cheaper(place, outliers, columns, "Single outliers help more than whole columns.")
        spqr = "With outliers QuantEase gives a lower perplexity than SpQR, up to two times."
        yield _cheaper(place, outliers, "SpQR", spqr)


PAPER = Paper(
    name="quantease",
    title="QuantEase: Optimization-based Quantization for Language Models",
    reference="arXiv 2309.01885",
    claims=tuple(_claims()),
    measure=measure,
    note=(
        "SpQR rounds groups of 16 and keeps outliers, so at a nominal width it spends more bits than the others; the "
        "figures named 'bits' say how many. The official code's outlier mode does not round, so its outlier figures "
        "cannot be compared with ours."
    ),
)
