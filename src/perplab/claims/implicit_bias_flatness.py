"""Same pre-training loss, better downstream (Liu et al., arXiv 2210.14199).

Three things are measured, on generated languages whose entropy is exact. The theory's log-bilinear model starts at an
unbalanced minimiser and is trained with and without label noise; with one factor it is held to the closed form. A
decoder is trained on a hidden Markov language to within a few thousandths of a nat of the entropy, forked into five
algorithms of as many steps, and all of them settle the same way. And a decoder of half the width is trained to the same
loss, then measured inside the larger architecture.

Flatness is the trace of the Fisher information, with labels drawn from the model, on the same sentences for all; a
probe reads the hidden state of the language off the features. Trace is the primary figure, excess loss over the entropy
says that models are comparable, and the probe is secondary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from perplab.claims.claim import Claim, Paper, Scale
from perplab.laws.flatness import Batch, hessian_trace, widen
from perplab.laws.probes import Features, hidden_features, linear_probe, lookup_features, one_hot, untrained
from perplab.laws.saturation import (
    Adversary,
    Algorithm,
    ForkConfig,
    SaturationConfig,
    bilinear_trace,
    exact_descent,
    excess_loss,
    forked,
    label_noise_descent,
    rank_one_flow,
    saturate,
)
from perplab.models.decoder_config import DecoderConfig
from perplab.text.synthetic.languages import HMM, LogBilinear
from perplab.training import new_decoder

_UNBALANCED = 3.0
_RATE = 0.02
_FLOW_RATE, _FLOW_TIME = 0.025, 4.0
_STATES, _SYMBOLS, _LENGTH = 8, 20, 16
_TASK = 9
"""The hidden state at the tenth position, the paper's task-10."""
_ADVERSARY = Adversary(weight=0.015, task=_TASK)
_FORKS: Mapping[str, Algorithm] = {
    "small batch": Algorithm(optimizer="sgd", learning_rate=0.2, batch_size=4),
    "large batch": Algorithm(optimizer="sgd", learning_rate=0.2, batch_size=64),
    "exact labels": Algorithm(optimizer="sgd", learning_rate=0.2, batch_size=4, labels="exact"),
    "AdamW": Algorithm(learning_rate=1e-3, batch_size=16),
    "adversarial": Algorithm(learning_rate=1e-3, batch_size=16, adversary=_ADVERSARY),
}


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        bilinear_steps: of the log-bilinear model at the lower learning rate.
        runs: of the log-bilinear models, side by side.
        width: of the larger decoder; the smaller one has half of it.
        floor_steps: to reach the floor, at most.
        bound: excess in nats at which they stop.
        fork_steps: of each algorithm.
        settling_steps: of all models in the end.
        traced: sentences for the traces.
        probed: sentences for the probes.
    """

    bilinear_steps: int
    runs: int
    width: int
    floor_steps: int
    bound: float
    fork_steps: int
    settling_steps: int
    traced: int
    probed: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        bilinear_steps=400,
        runs=1,
        width=32,
        floor_steps=20,
        bound=0.007,
        fork_steps=4,
        settling_steps=4,
        traced=16,
        probed=200,
    ),
    "pocket": _Setting(
        bilinear_steps=50_000,
        runs=4,
        width=32,
        floor_steps=2000,
        bound=0.007,
        fork_steps=1000,
        settling_steps=300,
        traced=128,
        probed=3000,
    ),
    "gpu": _Setting(
        bilinear_steps=50_000,
        runs=32,
        width=256,
        floor_steps=20_000,
        bound=0.003,
        fork_steps=20_000,
        settling_steps=2000,
        traced=1024,
        probed=20_000,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Traces, excess losses in nats and shares of right answers."""
    setting = _SETTINGS[scale]
    return theory(setting, seed) | flow(setting, seed) | decoders(setting, seed, "cuda" if scale == "gpu" else "cpu")


def theory(setting: _Setting, seed: int) -> dict[str, float]:
    """Traces of the log-bilinear model after training from an unbalanced minimiser."""
    language = LogBilinear.random(contexts=8, words=6, factors=6, seed=seed)
    start, steps = language.minimiser(_UNBALANCED), setting.bilinear_steps
    noisy = {
        "label noise": (_RATE, 1, steps),
        "label noise, twice the rate": (2 * _RATE, 1, steps // 4),
        "label noise, batches of 4": (_RATE, 4, steps),
    }
    figures = {
        "theory, start: trace": float(bilinear_trace(language, start)),
        "theory, exact gradient: trace": float(
            bilinear_trace(language, exact_descent(language, start, learning_rate=_RATE, steps=steps))
        ),
    }
    for name, (rate, batch_size, count) in noisy.items():
        ends = label_noise_descent(
            language, start, learning_rate=rate, batch_size=batch_size, steps=count, seed=seed, runs=setting.runs
        )
        figures[f"theory, {name}: trace"] = float(bilinear_trace(language, ends).mean())
    return figures


def flow(setting: _Setting, seed: int) -> dict[str, float]:
    """The mean scale that stochastic descent reaches with one factor, and the one that the closed form predicts."""
    language = LogBilinear.random(contexts=4, words=5, factors=1, seed=seed)
    contexts, _ = label_noise_descent(
        language,
        language.minimiser(2.0),
        learning_rate=_FLOW_RATE,
        batch_size=1,
        steps=round(_FLOW_TIME / _FLOW_RATE**2),
        seed=seed,
        runs=100 * setting.runs,
    )
    own, _ = language.minimiser()
    return {
        "one factor, descent: scale": float(((contexts * own).sum(axis=(1, 2)) / (own**2).sum()).mean()),
        "one factor, flow: scale": rank_one_flow(language, 2.0, time=_FLOW_TIME),
    }


def decoders(setting: _Setting, seed: int, device: str) -> dict[str, float]:
    """Trace, excess and probe of decoders by how they came to the floor, and the floors of the probe."""
    language = HMM.random(states=_STATES, symbols=_SYMBOLS, length=_LENGTH, seed=seed)
    ruler = _Ruler(language, setting, seed)
    half, whole = (_new_decoder(width, seed).to(device) for width in (setting.width // 2, setting.width))
    reached = saturate(half, language, _to_the_floor(setting, seed, setting.bound)).excess.value
    saturate(whole, language, _to_the_floor(setting, seed, max(reached, setting.bound)))
    figures = ruler.figures("half the width", half, widen(half, whole.config, seed=seed))
    figures |= ruler.figures("whole width", whole, whole)

    saturate(whole, language, _to_the_floor(setting, seed + 1, setting.bound))
    going_on = ForkConfig(steps=setting.fork_steps, settling_steps=setting.settling_steps, seed=seed)
    models = forked(whole, language, {"start": going_on.settling}, replace(going_on, steps=0)) | forked(
        whole, language, _FORKS, going_on
    )
    for name, model in models.items():
        figures |= ruler.figures(name, model, model)
    excesses, traces, probes = (
        [figures[f"{name}: {kind}"] for name in models] for kind in ("excess", "trace", "probe")
    )
    return figures | {
        "look-up table: probe": ruler.probed(lookup_features(language, ruler.sentences)),
        "one-hot: probe": ruler.probed(one_hot(ruler.sentences, _SYMBOLS)),
        "untrained: probe": ruler.probed(hidden_features(untrained(whole, seed), ruler.sentences)),
        "largest difference of excess": max(excesses) - min(excesses),
        "rank correlation of trace and probe": float(spearmanr(traces, probes).statistic),
        "rank correlation of excess and probe": float(spearmanr(excesses, probes).statistic),
    }


class _Ruler:
    """The sentences that all models of a seed are measured on."""

    def __init__(self, language: HMM, setting: _Setting, seed: int) -> None:
        self._language, self._seed = language, seed
        self.sentences = language.sample(setting.probed, seed + 10_000)
        self._labels = language.hidden_labels(self.sentences)[:, _TASK]
        self._text = [Batch.of_rows(torch.from_numpy(language.sample(setting.traced, seed + 20_000)))]

    def figures(self, name: str, model: PreTrainedModel, embedded: PreTrainedModel) -> dict[str, float]:
        """Trace of a model in the architecture that is common to all, excess and probe of its own."""
        return {
            f"{name}: trace": hessian_trace(embedded, self._text, samples=4, seed=self._seed).value,
            f"{name}: excess": excess_loss(model, self._language, sentences=2048, seed=self._seed + 30_000).value,
            f"{name}: probe": self.probed(hidden_features(model, self.sentences)),
        }

    def probed(self, features: Features) -> float:
        """Share of hidden states that a linear probe gets right."""
        return linear_probe(features, self._labels, seed=self._seed).accuracy


def _new_decoder(width: int, seed: int) -> PreTrainedModel:
    """A decoder of two layers with heads of 16."""
    return new_decoder(
        DecoderConfig(
            vocab_size=_SYMBOLS,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=width // 16,
            tie_word_embeddings=False,
            initializer_range=width**-0.5,
        ),
        seed,
    )


def _to_the_floor(setting: _Setting, seed: int, bound: float) -> SaturationConfig:
    """AdamW on exact labels, which have no noise at the floor."""
    algorithm = Algorithm(learning_rate=1e-2, labels="exact", decay=True, warmup=50)
    steps = setting.floor_steps
    return SaturationConfig(bound=bound, max_steps=steps, check_every=25, algorithm=algorithm, seed=seed)


def _less(name: str, statement: str, metric: str, baseline: str, paper: float | None = None) -> Claim:
    """The metric's trace is a smaller share of the baseline's than 1."""
    return Claim(
        name=name,
        statement=statement,
        metric=f"{metric}: trace",
        baseline=f"{baseline}: trace",
        effect="ratio",
        threshold=1.0,
        paper_value=paper,
    )


def _reads_more(name: str, statement: str, metric: str, baseline: str, paper: float | None = None) -> Claim:
    """The metric's features tell more of the hidden state."""
    return Claim(
        name=name,
        statement=statement,
        metric=f"{metric}: probe",
        baseline=f"{baseline}: probe",
        better="higher",
        unit="share of right answers",
        paper_value=paper,
    )


def _claims() -> Iterator[Claim]:
    yield from _theory_claims()
    yield Claim(
        name="Losses tie",
        statement="All models compared cost the same, within a few thousandths of a nat.",
        metric="largest difference of excess",
        effect="value",
        threshold=0.005,
        unit="nats a symbol",
    )
    yield _less(
        "Longer training",
        "Stochastic gradient descent goes on to flatter models after the loss has converged.",
        "small batch",
        "start",
    )
    yield _less("Small batches", "It does so faster with smaller batches.", "small batch", "large batch")
    yield _less("Label noise", "It is noise that does it.", "small batch", "exact labels")
    yield _less(
        "Algorithms", "At equal loss AdamW is flatter than an adversarial algorithm.", "AdamW", "adversarial", 0.414
    )
    yield _less(
        "Sizes",
        "At equal loss the larger model is flatter, the smaller one measured in its architecture.",
        "whole width",
        "half the width",
        0.636,
    )
    yield _reads_more("Longer training: probe", "Longer training makes better features.", "small batch", "start", 0.040)
    yield _reads_more(
        "Algorithms: probe", "AdamW's features are better than adversarial ones.", "AdamW", "adversarial", 0.069
    )
    yield _reads_more("Sizes: probe", "The larger model's features are better.", "whole width", "half the width", 0.045)
    yield _reads_more(
        "Look-up table: probe",
        "The best outputs alone, a look-up table, make worse features than a trained model.",
        "AdamW",
        "look-up table",
        0.095,
    )
    yield _reads_more("Untrained: probe", "(Control.) Training makes better features.", "start", "untrained")
    yield _reads_more("One-hot: probe", "(Control.) They are better than the sentence itself.", "start", "one-hot")
    yield Claim(
        name="Flat models read better",
        statement="Among models of one loss, flatness goes with better features: rank correlation below 0.",
        metric="rank correlation of trace and probe",
        baseline="rank correlation of excess and probe",
        effect="value",
        threshold=0.0,
    )


def _theory_claims() -> Iterator[Claim]:
    yield Claim(
        name="Theory: no drift without noise",
        statement="Gradient descent without noise stays at the minimiser it starts from.",
        metric="theory, exact gradient: trace",
        baseline="theory, start: trace",
        effect="ratio",
        paper_value=1.0,
        tolerance=1e-9,
    )
    yield _less(
        "Theory: drift",
        "Label noise at a minimiser drifts to flatter ones of the same loss.",
        "theory, label noise",
        "theory, start",
    )
    yield _less(
        "Theory: batches",
        "In larger batches it drifts more slowly.",
        "theory, label noise",
        "theory, label noise, batches of 4",
    )
    yield Claim(
        name="Theory: time",
        statement="What counts is steps times squared learning rate: at twice the rate a quarter of the steps do.",
        metric="theory, label noise, twice the rate: trace",
        baseline="theory, label noise: trace",
        effect="ratio",
        paper_value=1.0,
        tolerance=0.2,
    )
    yield Claim(
        name="Theory: closed form",
        statement="With one factor, descent follows the flow of the theorem.",
        metric="one factor, descent: scale",
        baseline="one factor, flow: scale",
        effect="ratio",
        paper_value=1.0,
        tolerance=0.02,
    )


PAPER = Paper(
    name="implicit_bias_flatness",
    title="Same Pre-training Loss, Better Downstream: Implicit Bias Matters for Language Models",
    reference="arXiv 2210.14199",
    claims=tuple(_claims()),
    measure=measure,
    note=(
        "The paper's figures are of BERT-style models and LSTMs of 2 M to 730 M parameters on masked symbols: traces "
        "on PCFG data, of 235 M models (task C) for the algorithms and of all above 9 M for the sizes; probes on PCFG "
        "data (task B) for algorithms and look-up table, on HMM data (task-10) for longer training and sizes. Ours are "
        "causal decoders of 22 thousand parameters on a hidden Markov language of 20 symbols, so effects compare in "
        "direction. Forks that differ in noise take plain gradient steps of one learning rate; the two AdamW forks "
        "differ in the adversary alone. All forks settle by the same steps on exact labels before they are measured; "
        "the two widths are compared where the larger one's loss has just reached the smaller one's. Traces are of the "
        "Fisher information, which is the Hessian's at the floor."
    ),
)
