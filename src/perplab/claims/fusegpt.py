"""FuseGPT: learnable layers fusion of generative pre-trained transformers (Pei et al., arXiv 2411.14507).

A decoder of eight blocks is trained on Python source, loses two blocks by each method, and is measured on held-out
source and on C++ headers, which neither training nor recovery saw. The paper removes a quarter of LLaMA-2-7B's blocks
and measures on the corpus that it recovers on.

The paper's comparison with LoRA lets coefficients learn faster than the low-rank updates of both arms, here by ten
times. Beside it stand two at equal budget, learning rates tuned for both: LoRA of twice the rank has as many parameters
as fusion after the first removal, LoRA of three times the rank as many as fusion's blocks with two donors.

Rates were tuned on the seeds 100 and 101, nats a token of held-out source (dense 2.283 on the second):

- LoRA of twice the rank at 0.003, 0.01, 0.03: 2.505, 2.474, 2.492 and 2.475, 2.446, 2.479; at 0.02, second seed: 2.450.
- Fusion, coefficients and updates at 0.01 and 0.01, 0.03 and 0.03, 0.03 and 0.01: 2.478, 2.473, 2.469 and 2.455, 2.455,
  2.444; at 0.1 and 0.01, second seed: 2.458; at 0.003 and 0.003, first seed: 2.530.
- Removal alone, first seed: 2.734.

So fusion had some more rates to choose from than LoRA of twice the rank, LoRA of three times the rank none of its own,
and the loss over a batch those of squared error. On those seeds the arms of equal budget differ by 0.005 nats or less.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained_on
from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.fuse import fuse
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.text import Document, open_corpus
from perplab.training import TrainConfig

_CORPUS = "builtin:python"
_TEXTS = {"": _CORPUS, ", other text": "builtin:cpp"}
"""What is measured on, by what figures say of it."""
_BLOCKS = 8
_TOKENS: Mapping[Scale, int] = {"smoke": 30_000, "pocket": 2_000_000, "gpu": 100_000_000}
_TRAINED_BYTES: Mapping[Scale, int] = {"smoke": 200_000, "pocket": 10_000_000, "gpu": 1_000_000_000}
_PASSES: Mapping[Scale, Mapping[str, int]] = {
    "smoke": {"windows": 4, "scored_windows": 4, "batch": 2, "epochs": 1, "length": 32},
    "pocket": {"windows": 64, "scored_windows": 16, "batch": 8, "epochs": 10, "length": 128},
    "gpu": {"windows": 1024, "scored_windows": 32, "batch": 8, "epochs": 20, "length": 128},
}
_RANK = 8
_TUNED = {"learning_rate": 1e-2, "coefficient_learning_rate": 3e-2}
_ARMS: Mapping[str, Mapping[str, object]] = {
    "removal alone": {"epochs": 0},
    "ShortGPT": {"method": "shortgpt"},
    "SLEB": {"method": "sleb"},
    "LaCo": {"method": "laco"},
    "MKA": {"method": "mka"},
    "SliceGPT, one basis": {"method": "slicegpt"},
    "fusion, faster coefficients": {"learning_rate": 1e-3, "coefficient_learning_rate": 1e-2},
    "LoRA, slower rate": {"method": "lora", "learning_rate": 1e-3},
    "SLEB and LoRA, slower rate": {"method": "lora", "criterion": "sleb_loss", "learning_rate": 1e-3},
    "fusion": _TUNED,
    "fusion by the first ranking": {**_TUNED, "rescore": False},
    "fusion by batch KL": {**_TUNED, "loss": "batch_kl"},
    "LoRA of twice the rank": {"method": "lora", "rank": 2 * _RANK, "learning_rate": 1e-2},
    "LoRA of three times the rank": {"method": "lora", "rank": 3 * _RANK, "learning_rate": 1e-2},
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Nats a token and perplexity on both texts, of the dense model and of each arm; how rankings changed."""
    texts = {place: _heldout(corpus, 4_000 if scale == "smoke" else 60_000) for place, corpus in _TEXTS.items()}
    dense = _dense(scale, seed)
    settings = {"rate": 0.25, "group": 4, "rank": _RANK, "seed": seed, **_PASSES[scale]}
    figures = _costs("dense", dense, texts)
    for name, arm in _ARMS.items():
        smaller = fuse(dense, open_corpus(_CORPUS, "train"), FuseConfig(**settings | dict(arm)))  # type: ignore[arg-type]
        figures |= _costs(name, smaller, texts)
        if name in ("fusion", "removal alone"):
            made = smaller.lineage.figures if smaller.lineage else {}
            figures[f"{name}: pairs of blocks that change places"] = _changed_order(made)
    return figures


def _dense(scale: Scale, seed: int) -> LanguageModel:
    """A model of eight blocks, in float32: the differences that are measured are finer than bfloat16's steps."""
    small = scale == "smoke"
    corpus = open_corpus(_CORPUS).limited(_TRAINED_BYTES[scale])
    config = TrainConfig(
        num_hidden_layers=_BLOCKS,
        hidden_size=512 if scale == "gpu" else 64,
        vocab_size=512,
        tokens=_TOKENS[scale],
        block_size=64 if small else 128,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        checkpoint_every=10**6,
        evaluate_every=10**6,
        compile=scale == "gpu",
        seed=seed,
    )
    dense = trained_on(corpus, config)
    dense.model.to("cuda" if scale == "gpu" else "cpu", torch.float32)
    return dense


def _heldout(corpus: str, size: int) -> list[Document]:
    """About `size` characters, in documents none of which is more than a quarter of it."""
    chosen: list[Document] = []
    for document in open_corpus(corpus, "heldout"):
        if sum(len(one.text) for one in chosen) >= size:
            break
        if len(document.text) <= size / 4:
            chosen.append(document)
    return chosen


def _costs(name: str, language_model: LanguageModel, texts: Mapping[str, list[Document]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for place, documents in texts.items():
        nats = float(np.mean(score(language_model, documents).tokens["nll"].to_numpy()))
        figures |= {f"{name}: nats{place}": nats, f"{name}: perplexity{place}": math.exp(nats)}
    return figures


def _changed_order(figures: Mapping[str, float]) -> float:
    """The share of pairs of blocks, of those left, that the second ranking puts in another order than the first."""
    first, second = ("round 1/score of block", "round 2/score of block")
    left = [index for index in range(_BLOCKS) if f"{second} {index}" in figures]
    pairs = list(combinations(left, 2))
    changed = [
        (figures[f"{first} {one}"] < figures[f"{first} {two}"])
        != (figures[f"{second} {one}"] < figures[f"{second} {two}"])
        for one, two in pairs
    ]
    return sum(changed) / len(pairs)


def _against(metric: str, baseline: str, statement: str, paper_value: float | None = None) -> Claim:
    """A claim on perplexities, as a ratio: that is what models of two sizes have in common."""
    return Claim(
        name=f"{metric} against {baseline}",
        statement=statement,
        metric=f"{metric}: perplexity",
        baseline=f"{baseline}: perplexity",
        effect="ratio",
        paper_value=paper_value,
    )


def _claims() -> Iterator[Claim]:
    yield _against(
        "fusion",
        "removal alone",
        "A model whose blocks absorb the removed ones costs less than one that only lost them.",
        7.19 / 10.52,
    )
    yield Claim(
        name="fusion against removal alone, other text",
        statement="It does so on text of a kind that recovery did not read.",
        metric="fusion: nats, other text",
        baseline="removal alone: nats, other text",
        unit="nats a token",
    )
    yield Claim(
        name="ranking after a fusion",
        statement="Fusing one block changes the order in which the others matter, and more than removing it does.",
        metric="fusion: pairs of blocks that change places",
        baseline="removal alone: pairs of blocks that change places",
        better="higher",
        unit="of all pairs",
    )
    yield _against("fusion", "fusion by the first ranking", "Ranking again after each fusion chooses better blocks.")
    yield _against(
        "fusion, faster coefficients",
        "LoRA, slower rate",
        "Fusion recovers more than LoRA after the same removals, where its coefficients learn faster.",
        7.19 / 7.79,
    )
    yield _against(
        "fusion, faster coefficients",
        "SLEB and LoRA, slower rate",
        "Fusion recovers more than LoRA after removals by SLEB, where its coefficients learn faster.",
        7.19 / 7.48,
    )
    for rank in ("twice", "three times"):
        yield _against(
            "fusion",
            f"LoRA of {rank} the rank",
            f"(Control.) Fusion recovers more than LoRA of {rank} the rank, learning rates tuned for both.",
        )
    yield Claim(
        name="fusion against LoRA of twice the rank, other text",
        statement="(Control.) The same on text of a kind that recovery did not read.",
        metric="fusion: nats, other text",
        baseline="LoRA of twice the rank: nats, other text",
        unit="nats a token",
    )
    yield _against(
        "fusion by batch KL", "fusion", "(Control.) The paper's loss over a batch recovers more than squared error."
    )
    yield _against("fusion", "LaCo", "Fusion costs less than merging blocks by their differences (LaCo).", 0.73)
    for other in ("ShortGPT", "SLEB", "MKA", "SliceGPT, one basis"):
        yield _against("fusion", other, f"Fusion costs less than {other} at the same rate.")


PAPER = Paper(
    name="fusegpt",
    title="FuseGPT: Learnable Layers Fusion of Generative Pre-trained Transformers",
    reference="arXiv 2411.14507",
    measure=measure,
    note=(
        "A model of eight blocks, trained on Python source, loses two; fusion recovers by squared error, with "
        "coefficients of rank 8. The paper's figures are of LLaMA-2-7B at a quarter of its blocks on WikiText-2, as "
        "quoted in reviews of the paper, against LaCo of LLaMA-3.1-8B. Fusion has three parameters for one of LoRA's "
        "at equal rank where a block takes two donors: hence the controls of twice and three times the rank. Rates "
        "were tuned on other seeds: at twice the rank for both arms, at three times the rank and for the loss over a "
        "batch they are those of others. SliceGPT takes one basis for the whole model, so that the result is a plain "
        "checkpoint, and loses more than with a basis a block; LaCo and MKA follow their papers' formulas, which their "
        "public code does not compute."
    ),
    claims=tuple(_claims()),
)
