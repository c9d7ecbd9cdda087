"""QuantEase: optimization-based quantization for language models (Behdin et al., arXiv 2309.01885).

Two trained models, the shipped Llama-layout `pocket` and a small GPT-2 trained for each seed, are rounded to 2, 3 and 4
bits by every method on one kind of grid: min-max, asymmetric, a scale a row. SpQR brings its own grid of groups of 16
with 3-bit scales, so it spends more bits; what it spends is among the figures. A seed draws the calibration windows,
trains the GPT-2 and starts nothing else. Costs are nats a token on held-out text, the same for all.

Beside the paper's method (coordinate descent from the unrounded weights) stands the one that perplab takes by default:
coordinate descent from GPTQ's result. GPTQ with activation order is the baseline that the paper's tables lack.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained_gpt2
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


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Nats a token and mean relative error of the layers, for each model, width and method."""
    small = scale == "smoke"
    corpus = "builtin:python" if small else "builtin:all"
    training = TrainConfig(
        tokens=60_000 if small else 2_000_000,
        num_hidden_layers=2 if small else 4,
        hidden_size=64 if small else 192,
        block_size=_LENGTH,
        seed=seed,
    )
    subjects = {"GPT-2": trained_gpt2(corpus, training)} | ({} if small else {"pocket": load("pocket")})
    calibration = list(open_corpus(corpus, "train").limited(_CALIBRATION_BYTES))
    heldout = _heldout(corpus, 8_000 if small else 150_000)
    figures: dict[str, float] = {}
    for name, subject in subjects.items():
        figures[f"{name}: nats"] = _nats(subject, heldout)
        for bits, method in product((3,) if small else _BITS, _METHODS):
            config = replace(_METHODS[method], bits=bits, windows=8 if small else 48, length=_LENGTH, seed=seed)
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
        statement=statement,
        metric=f"{place}, {ours}: nats",
        baseline=f"{place}, {theirs}: nats",
        unit="nats a token",
    )


def _claims() -> Iterator[Claim]:
    outliers = "QuantEase, 1 % outliers"
    for name, bits in product(("pocket", "GPT-2"), _BITS):
        place = f"{name}, {bits} bits"
        yield Claim(
            name=f"{place}: layers, from GPTQ",
            statement="Coordinate descent that starts at GPTQ's result lowers the layers' error further.",
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
