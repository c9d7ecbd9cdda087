"""Sparse spectral training (Zhao et al., arXiv 2405.15481).

Four measurements, with one seed for all:

- A regression on a matrix that differs from the initial one by a matrix of full rank: LoRA cannot get below what its
  rank leaves (Eckart and Young), methods that begin anew can. It shows that a method is not bound by its rank, and
  nothing else. Every arm has the same rate, which falls to zero.
- Language models trained from random weights under `perplab train`, an arm a method: equal steps, tokens, initial
  weights and order, rank an eighth of the width, two and a half rounds.
- Graph networks in hyperbolic space on a branching tree along which something spreads, at rank 2 of 16: the mean of
  three inner seeds.
- The language models of full and of sparse spectral training with their smallest singular values cut off.

Rates were tuned on seed 100, bits per byte of held-out source after the pocket run: full 0.002: 1.985, 0.004: 1.977;
LoRA 0.0025: 2.114, 0.005: 2.051, 0.01: 2.065; ReLoRA 0.0025: 2.214, 0.005: 2.128; GaLore 0.02: 2.041, 0.04: 2.080; SST
0.0025: 2.093, 0.005: 2.053, 0.01: 2.072. Graph networks take 0.01, which was no worse than 0.03 for full training, LoRA
and SST on the seeds 100 and 101; GaLore takes four times that, because it scales its steps by a quarter.

The regression's iterations take 40 steps. With iterations of 20, 40 and 75 its errors were, on seed 100, for SST
0.0045, 0.0097, 0.059, and for ReLoRA 0.0011, 0.0004, 0.0002.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from perplab.claims.claim import Claim, Paper, Scale
from perplab.claims.subjects import trained_on
from perplab.models import LanguageModel
from perplab.models.anatomy import linear_layers
from perplab.scoring import score
from perplab.text import Document, open_corpus
from perplab.training import TrainConfig
from perplab.training.config import TrainMethod
from perplab.training.low_rank import LowRankConfig, LowRankMethod, apply_low_rank, truncate
from perplab.training.low_rank.layer import matrix_of

_CORPUS = "builtin:python"
_LARGEST_DOCUMENT = 10_000
"""Bytes: one long file would be most of a small sample."""
_LOW_RANK: Mapping[LowRankMethod, str] = {"lora": "LoRA", "relora": "ReLoRA", "galore": "GaLore", "sst": "SST"}
_RATES: Mapping[TrainMethod, float] = {
    "full": 4e-3,
    "lora": 5e-3,
    "relora": 5e-3,
    "galore": 2e-2,
    "sst": 5e-3,
}
_ENERGIES = (0.8, 0.9, 0.95, 0.99)
_REGRESSION_RANK = 4
_GRAPH_RANK = 2
_GRAPH_DIMENSION = 16
_INNER_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        width: of the language models; their rank is an eighth of it.
        layers: of the language models.
        steps: of the language models.
        batch_tokens: in a step.
        text_bytes: that are trained on.
        heldout_bytes: that are scored.
        regression_width: rows and columns of the regression's matrix.
        regression_steps: of the regression.
        graph_nodes: of the tree.
        graph_steps: of learning on it.
    """

    width: int
    layers: int
    steps: int
    batch_tokens: int
    text_bytes: int
    heldout_bytes: int
    regression_width: int
    regression_steps: int
    graph_nodes: int
    graph_steps: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        width=64,
        layers=1,
        steps=20,
        batch_tokens=256,
        text_bytes=100_000,
        heldout_bytes=1_000,
        regression_width=12,
        regression_steps=60,
        graph_nodes=60,
        graph_steps=20,
    ),
    "pocket": _Setting(
        width=96,
        layers=2,
        steps=1000,
        batch_tokens=1024,
        text_bytes=4_000_000,
        heldout_bytes=30_000,
        regression_width=48,
        regression_steps=3000,
        graph_nodes=300,
        graph_steps=300,
    ),
    "gpu": _Setting(
        width=768,
        layers=12,
        steps=20_000,
        batch_tokens=65_536,
        text_bytes=1_000_000_000,
        heldout_bytes=300_000,
        regression_width=48,
        regression_steps=3000,
        graph_nodes=2000,
        graph_steps=1000,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Errors of the regression, perplexities of the language models whole and cut, figures of the graph networks."""
    setting = _SETTINGS[scale]
    with warnings.catch_warnings():  # small layers get less than the rank, and the smallest scale no whole round
        warnings.simplefilter("ignore")
        return _regression(setting, seed) | _language_models(scale, setting, seed) | _graphs(setting, seed)


def _regression(setting: _Setting, seed: int) -> dict[str, float]:
    """Relative errors of the matrix that a method arrives at."""
    draw = torch.Generator().manual_seed(seed)
    width, steps = setting.regression_width, setting.regression_steps
    start, difference = (torch.randn(width, width, generator=draw) / math.sqrt(width) for _ in range(2))
    left = torch.linalg.svdvals(difference)[_REGRESSION_RANK:].norm() / (start + difference).norm()
    figures = {"regression by Adam, what the rank leaves: error": float(left)}
    for (optimizer, name), arm in _REGRESSION_ARMS.items():
        config = replace(
            arm,
            rank=_REGRESSION_RANK,
            iteration_steps=max(10, steps // 75),
            iteration_warmup=max(1, steps // 750),
            seed=seed,
        )
        error = _regression_error(start, start + difference, config, steps, optimizer)
        figures[f"regression by {optimizer}, {name}: error"] = error
    return figures


_REGRESSION_RATES = {"Adam": 0.02, "SGD": 2.0}
_REGRESSION_ARMS = {("Adam", name): LowRankConfig(method=method) for method, name in _LOW_RANK.items()} | {
    ("Adam", "SST, default gradient"): LowRankConfig(method="sst", enhanced=False),
    ("SGD", "SST"): LowRankConfig(method="sst"),
    ("SGD", "SST, default gradient"): LowRankConfig(method="sst", enhanced=False),
}


def _regression_error(
    start: torch.Tensor, target: torch.Tensor, config: LowRankConfig, steps: int, optimizer_name: str
) -> float:
    """Error of the matrix after training on random inputs at a rate that falls to zero, relative to the target."""
    model = nn.Sequential(nn.Linear(len(start), len(start), bias=False))
    model.load_state_dict({"0.weight": start})
    method = apply_low_rank(model, config)
    peak = _REGRESSION_RATES[optimizer_name]
    trained = [weight for name, weight in model.named_parameters() if name != "0.dense"]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(trained) if optimizer_name == "Adam" else torch.optim.SGD(trained)
    )
    draw = torch.Generator().manual_seed(config.seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - step / steps) * method.rate_factor(step)
        inputs = torch.randn(64, len(start), generator=draw)
        (model(inputs) - inputs @ target.T).square().mean().backward()
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step, optimizer)
    return float((method.layers[0].matrix() - target).norm() / target.norm())


def _language_models(scale: Scale, setting: _Setting, seed: int) -> dict[str, float]:
    heldout = _heldout(setting.heldout_bytes)
    models = {"full training": _language_model(scale, setting, "full", seed)}
    models |= {name: _language_model(scale, setting, method, seed) for method, name in _LOW_RANK.items()}
    figures: dict[str, float] = {}
    for name, model in models.items():
        made = model.lineage.figures if model.lineage else {}
        figures[f"language model, {name}: perplexity"] = math.exp(_nats(model, heldout))
        figures[f"language model, {name}: trained numbers"] = made["trained_parameters"]
        figures[f"language model, {name}: optimiser bytes"] = 2 * 4 * made["trained_parameters"]
    figures["language model, SST: optimiser bytes by formula"] = _formula_bytes(models["SST"], setting.width // 8)
    full, lora, relora, ours = (
        figures[f"language model, {name}: perplexity"] for name in ("full training", "LoRA", "ReLoRA", "SST")
    )
    figures["language model: share of the gap closed"] = (min(lora, relora) - ours) / (min(lora, relora) - full)
    for name in ("full training", "SST"):
        figures |= _truncated(name, models[name], heldout)
    return figures


def _language_model(scale: Scale, setting: _Setting, method: TrainMethod, seed: int) -> LanguageModel:
    rank = setting.width // 8
    iteration = max(2, round(setting.steps / 20))  # eight a round: two rounds and a half
    config = TrainConfig(
        tokens=setting.steps * setting.batch_tokens,
        num_hidden_layers=setting.layers,
        hidden_size=setting.width,
        vocab_size=512,
        block_size=64 if scale != "gpu" else 512,
        batch_tokens=setting.batch_tokens,
        micro_batch_tokens=min(setting.batch_tokens, 16_384),
        learning_rate=_RATES[method],
        schedule="constant",
        warmup=0.1,
        weight_decay=0.0,
        method=method,
        rank=rank,
        iteration_steps=iteration,
        iteration_warmup=iteration // 10,
        compile=scale == "gpu",
        evaluate_every=10**6,
        checkpoint_every=10**6,
        seed=seed,
    )
    text = open_corpus(_CORPUS).limited(setting.text_bytes)
    model = trained_on(text, config)
    model.model.to("cuda" if scale == "gpu" else "cpu", torch.float32)
    return model


def _truncated(name: str, model: LanguageModel, heldout: list[Document]) -> dict[str, float]:
    """What cutting off small singular values costs, and how many stay."""
    figures: dict[str, float] = {}
    whole = _nats(model, heldout)
    total = sum(min(matrix_of(layer).shape) for layer in linear_layers(model.model).values())
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    for energy in _ENERGIES:
        kept = sum(truncate(model.model, energy).values())
        place = f"language model, {name}, {energy:.0%} of the energy"
        figures[f"{place}: nats lost"] = _nats(model, heldout) - whole
        figures[f"{place}: singular values"] = kept / total
        model.model.load_state_dict(weights)
    return figures


def _formula_bytes(model: LanguageModel, rank: int) -> float:
    """Two float32 moments of rank (out + in) + k numbers a layer, and of everything outside the layers."""
    layers = [matrix_of(layer).shape for layer in linear_layers(model.model).values()]
    dense = model.model.num_parameters() - sum(out * in_ for out, in_ in layers)
    return 8.0 * (dense + sum(rank * (out + in_) + min(out, in_) for out, in_ in layers))


def _graphs(setting: _Setting, seed: int) -> dict[str, float]:
    """ROC-AUC of links and F1 of nodes, each the mean over inner seeds."""
    from perplab.training.hyperbolic import GraphConfig, branching_tree, train_links, train_nodes

    iteration = max(5, setting.graph_steps // 20)
    arms: dict[str, LowRankConfig | None] = {"full training": None}
    for method, name in _LOW_RANK.items():
        arms[name] = LowRankConfig(
            method=method, rank=_GRAPH_RANK, iteration_steps=iteration, iteration_warmup=iteration // 5
        )
    figures: dict[str, float] = {}
    seeds = [_INNER_SEEDS * seed + inner for inner in range(_INNER_SEEDS)]
    graphs = {inner: branching_tree(setting.graph_nodes, inner) for inner in seeds}
    base = GraphConfig(dimension=_GRAPH_DIMENSION, steps=setting.graph_steps)
    for name, arm in arms.items():
        rate = 0.04 if name == "GaLore" else 0.01
        configs = {
            inner: replace(base, learning_rate=rate, seed=inner, low_rank=arm and replace(arm, seed=inner))
            for inner in seeds
        }
        links, nodes = (
            float(np.mean([learn(graphs[inner], configs[inner]) for inner in seeds]))
            for learn in (train_links, train_nodes)
        )
        figures |= {f"tree, {name}: link AUC": links, f"tree, {name}: node F1": nodes}
    return figures


def _heldout(size: int) -> list[Document]:
    """Held-out documents of so many bytes in all."""
    chosen: list[Document] = []
    for document in open_corpus(_CORPUS, "heldout"):
        if len(document.text) < _LARGEST_DOCUMENT:
            chosen.append(document)
        if sum(len(one.text) for one in chosen) >= size:
            break
    return chosen


def _nats(model: LanguageModel, documents: list[Document]) -> float:
    """Mean cost of a token."""
    return float(np.mean(score(model, documents).tokens["nll"].to_numpy()))


def _cheaper(other: str, statement: str, paper_value: float | None = None) -> Claim:
    return Claim(
        name=f"language model: SST against {other}",
        statement=statement,
        metric="language model, SST: perplexity",
        baseline=f"language model, {other}: perplexity",
        effect="ratio",
        paper_value=paper_value,
    )


def _error(metric: str, baseline: str, statement: str, *, optimizer: str = "Adam", **options: float) -> Claim:
    return Claim(
        name=f"regression by {optimizer}: {metric} against {baseline}",
        statement=statement,
        metric=f"regression by {optimizer}, {metric}: error",
        baseline=f"regression by {optimizer}, {baseline}: error",
        effect="ratio",
        **options,  # type: ignore[arg-type]
    )


def _claims() -> Iterator[Claim]:
    yield _cheaper("LoRA", "SST reaches a lower perplexity than LoRA of the same rank.", 23.35 / 29.71)
    yield _cheaper("ReLoRA", "SST reaches a lower perplexity than ReLoRA of the same rank.", 23.35 / 31.33)
    yield Claim(
        name="language model: gap closed",
        statement="SST closes at least half of the gap that the better of LoRA and ReLoRA leaves to full training.",
        metric="language model: share of the gap closed",
        effect="value",
        better="higher",
        threshold=0.5,
        paper_value=0.658,
    )
    yield _cheaper("GaLore", "(Control.) SST reaches a lower perplexity than GaLore of the same rank.")
    yield Claim(
        name="language model: optimiser bytes",
        statement="Its optimiser state takes two moments of rank (out + in) + k numbers a layer.",
        metric="language model, SST: optimiser bytes",
        baseline="language model, SST: optimiser bytes by formula",
        effect="ratio",
        paper_value=1.0,
        tolerance=1e-9,
    )
    leaves = "what the rank leaves"
    yield _error("SST", leaves, "SST is not bound by its rank.", threshold=0.1)
    yield _error("LoRA", leaves, "LoRA stops at what its rank leaves.", paper_value=1.0, tolerance=0.05)
    yield _error("ReLoRA", leaves, "(Control.) ReLoRA is not bound by its rank either.", threshold=0.1)
    yield _error("SST", "ReLoRA", "(Control.) SST ends nearer to the matrix than ReLoRA.")
    for optimizer in _REGRESSION_RATES:
        without = f"Leaving singular values out of their vectors' gradients brings {optimizer} nearer to the matrix."
        yield _error("SST", "SST, default gradient", f"(Control.) {without}", optimizer=optimizer)
    yield from _graph_claims()
    for energy in _ENERGIES:
        kept = f"{energy:.0%} of the energy"
        yield Claim(
            name=f"cut to {kept}: singular values",
            statement=f"Trained by SST, a model holds {kept} in fewer singular values than trained in full.",
            metric=f"language model, SST, {kept}: singular values",
            baseline=f"language model, full training, {kept}: singular values",
            unit="of all",
        )
        yield Claim(
            name=f"cut to {kept}: nats lost",
            statement=f"Cut to {kept}, it loses less.",
            metric=f"language model, SST, {kept}: nats lost",
            baseline=f"language model, full training, {kept}: nats lost",
            unit="nats a token",
        )


def _graph_claims() -> Iterator[Claim]:
    for figure, other in (("link AUC", "LoRA"), ("link AUC", "ReLoRA"), ("node F1", "LoRA"), ("node F1", "ReLoRA")):
        yield Claim(
            name=f"tree, {figure}: SST against {other}",
            statement=f"In hyperbolic space SST is better than {other} ({figure}).",
            metric=f"tree, SST: {figure}",
            baseline=f"tree, {other}: {figure}",
            better="higher",
        )
    yield Claim(
        name="tree, link AUC: SST against full training",
        statement="On links of a tree it is better than full training.",
        metric="tree, SST: link AUC",
        baseline="tree, full training: link AUC",
        better="higher",
    )


PAPER = Paper(
    name="sparse_spectral_training",
    title="Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks",
    reference="arXiv 2405.15481",
    measure=measure,
    note=(
        "The paper's figures are of LLaMA-130M on OpenWebText. Here every arm has a rate tuned on another seed, from "
        "two or three; weights are not decayed, and ReLoRA has no start by full training, as in the paper. Stored "
        "weights of SST take more than twice the dense ones: what it saves are gradients and optimiser state. The tree "
        "stands for Disease, which is a download; its features are inherited, and the figures are means of three "
        "inner seeds."
    ),
    claims=tuple(_claims()),
)
