"""Continual pre-training: how to (re)warm your model? (Gupta et al., arXiv 2308.04014), and the practice after it.

A small decoder of bytes learns the standard library's source; the interpreter's help topics and doc strings are the new
text. The second stage is run in many ways from the same model, and both texts are measured over the same windows. Every
arm of a seed draws the same new text in the same order; all have decayed at their end but the constant rate, since
before the end of a decay arms differ in their rate more than in what they learnt.

Beside the paper's arms stand those of Ibrahim et al. (2403.08763): replay, the union of both texts from random weights,
and schedules that go on from a model whose rate has not decayed yet, with its optimiser state. Such models are trained
on as many tokens as the one that was decayed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perplab.claims.claim import Claim, Paper, Scale
from perplab.text import Corpus, open_corpus
from perplab.training import TrainConfig, train
from perplab.training.forgetting import ForgettingReport, forgetting_report

_PEAK = 3e-3
_FLOOR = 0.1
_PLATEAU = 0.5
_EARLY_STEP = 8
_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Sizes of a measurement.

    Attributes:
        hidden_size: of the decoder.
        layers: of it.
        row: tokens.
        batch: tokens.
        old_steps: of the first stage.
        new_steps: of the second.
        old_bytes: of old text.
        evaluated: tokens of either text.
    """

    hidden_size: int
    layers: int
    row: int
    batch: int
    old_steps: int
    new_steps: int
    old_bytes: int
    evaluated: int


_SETTINGS: Mapping[Scale, _Setting] = {
    "smoke": _Setting(
        hidden_size=32, layers=1, row=32, batch=64, old_steps=20, new_steps=20, old_bytes=300_000, evaluated=256
    ),
    "pocket": _Setting(
        hidden_size=64,
        layers=2,
        row=64,
        batch=1024,
        old_steps=1200,
        new_steps=400,
        old_bytes=3_000_000,
        evaluated=16_384,
    ),
    "gpu": _Setting(
        hidden_size=512,
        layers=8,
        row=512,
        batch=32_768,
        old_steps=6000,
        new_steps=2000,
        old_bytes=1 << 40,
        evaluated=65_536,
    ),
}


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Nats a byte of old and new text after every arm, and what they were on the way."""
    with TemporaryDirectory() as folder:
        return _Experiment(_SETTINGS[scale], seed, Path(folder)).figures()


class _Experiment:
    """The models of one seed."""

    def __init__(self, setting: _Setting, seed: int, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        self.old = open_corpus("builtin:python").limited(setting.old_bytes)
        self.new = open_corpus("builtin:reference")
        self.shape: dict[str, Any] = {
            "hidden_size": setting.hidden_size,
            "num_hidden_layers": setting.layers,
            "vocab_size": 257,
        }
        self.common = TrainConfig(
            block_size=setting.row,
            batch_tokens=setting.batch,
            micro_batch_tokens=setting.batch,
            schedule="cosine",
            final=_FLOOR,
            precision="float32",
            compile=False,
            seed=seed,
            checkpoint_every=1 << 30,
            evaluate_every=max(1, setting.new_steps // 4),
            evaluate_tokens=setting.evaluated,
        )

    def figures(self) -> dict[str, float]:
        decayed = self._first("cosine")
        self.tokenizer = str(decayed)
        steps = self.setting.old_steps + self.setting.new_steps
        figures: dict[str, float] = {}
        for name, rewarm in (("constant", 0.0), ("half", 0.5), ("one", 1.0), ("two", 2.0)):
            figures |= _ends(name, self._second(name, decayed, rewarm=rewarm))
        for name, warmup in (("no warm-up", 0.0), ("long warm-up", 0.05)):
            figures |= _ends(name, self._second(name, decayed, rewarm=1.0, warmup=warmup))
        figures |= _ends("replay", self._second("replay", decayed, rewarm=1.0, replay=_SHARE))
        same = self._second("same", decayed, self.old, rewarm=1.0)
        figures |= _ends("same text", same) | {"same text: worst change": same.course("old").worst.change}
        figures |= _ends("scratch", self._from_scratch("scratch", 0.0, self.setting.new_steps))
        figures |= _ends("union", self._from_scratch("union", self.setting.old_steps / steps, steps))
        figures |= _ends("wsd", self._undecayed("wsd", 1.0))
        figures |= _ends("infinite", self._undecayed("infinite", _PLATEAU))
        return figures | _derived(figures)

    def _first(self, schedule: str, **settings: Any) -> Path:
        """The folder of a model of the old text."""
        config = replace(
            self.common,
            **self.shape,
            learning_rate=_PEAK,
            tokens=self.setting.old_steps * self.setting.batch,
            evaluate_every=self.setting.old_steps,
            **{"schedule": schedule} | settings,
        )
        train(self.old, self.folder / f"old {schedule}", config, progress=False)
        return self.folder / f"old {schedule}"

    def _second(self, name: str, parent: Path, text: Corpus | None = None, **settings: Any) -> ForgettingReport:
        """What came of training a model of the old text further, by default on the new."""
        out = self.folder / name
        config = replace(
            self.common,
            **{"warmup": 0.01, "tokens": self.setting.new_steps * self.setting.batch} | settings,
        )
        train(text or self.new, out, config, parent=parent, replay=self.old, progress=False)
        return forgetting_report(out)

    def _from_scratch(self, name: str, share: float, steps: int) -> ForgettingReport:
        """What came of training a model with random weights on the new text and a share of the old."""
        out = self.folder / name
        config = replace(
            self.common,
            **self.shape,
            learning_rate=_PEAK,
            warmup=0.01,
            tokens=steps * self.setting.batch,
            replay=share,
            evaluate_every=steps,
        )
        train(self.new, out, config, replay=self.old, tokenizer=self.tokenizer, progress=False)
        return forgetting_report(out)

    def _undecayed(self, schedule: str, plateau: float) -> ForgettingReport:
        """What came of a model whose rate had not decayed: its plateau is kept, and decays over the last tenth."""
        horizon = self.setting.old_steps * 10 // 9 + 1
        parent = self._first(
            schedule, horizon_tokens=horizon * self.setting.batch, decay=0.1, plateau=plateau, warmup=0.02
        )
        return self._second(
            f"{schedule}, further",
            parent,
            learning_rate=plateau * _PEAK,
            schedule="wsd",
            decay=0.1,
            decay_shape="exponential",
            final=_FLOOR / plateau,
            warmup=0.0,
            optimizer_state="restore",
        )


def _ends(name: str, report: ForgettingReport) -> dict[str, float]:
    old, new = report.course("old"), report.course("new")
    early = next(reading for reading in old.readings if reading.step >= min(_EARLY_STEP, old.last.step))
    return {
        f"{name}: old": old.last.loss,
        f"{name}: new": new.last.loss,
        f"{name}: both": (old.last.loss + new.last.loss) / 2,
        f"{name}: forgotten": old.last.change,
        f"{name}: early": early.change,
    }


def _derived(figures: Mapping[str, float]) -> dict[str, float]:
    warmups = [figures[f"{name}: new"] for name in ("one", "no warm-up", "long warm-up")]
    return {
        "warm-ups: spread of new": max(warmups) - min(warmups),
        "half or one: difference of new": abs(figures["half: new"] - figures["one: new"]),
        "price of replay": figures["replay: new"] - figures["one: new"],
        "same text: comes back": figures["same text: worst change"] - figures["same text: forgotten"],
    }


_ARMS = {
    "constant": "the constant floor",
    "half": "half the old peak",
    "one": "the old peak",
    "two": "twice the old peak",
}


def _lower(name: str, statement: str, metric: str, baseline: str, **settings: Any) -> Claim:
    return Claim(name=name, statement=statement, metric=metric, baseline=baseline, unit="nats a byte", **settings)


def _above(name: str, statement: str, metric: str, threshold: float = 0.0, better: Any = "higher") -> Claim:
    return Claim(
        name=name,
        statement=statement,
        metric=metric,
        effect="value",
        better=better,
        threshold=threshold,
        unit="nats a byte",
    )


def _claims() -> Iterator[Claim]:
    arms = list(_ARMS.items())
    for (low, lower), (high, higher) in pairwise(arms):
        yield _lower(
            f"Forgetting: {lower} against {higher}",
            f"A higher peak forgets more: old text costs less after {lower} than after {higher}.",
            f"{low}: old",
            f"{high}: old",
        )
    for (low, lower), (high, higher) in pairwise(arms):
        yield _lower(
            f"Adaptation: {higher} against {lower}",
            f"A higher peak learns more: new text costs less after {higher} than after {lower}.",
            f"{high}: new",
            f"{low}: new",
        )
    yield _lower(
        "Re-warmed against scratch",
        "A re-warmed model ends below one from random weights on the new text.",
        "one: new",
        "scratch: new",
    )
    yield _lower(
        "Length of the warm-up",
        "Warm-ups of 0, 1 and 5 % end alike: they differ by less than half the peak and the peak do.",
        "warm-ups: spread of new",
        "half or one: difference of new",
    )
    yield _above(
        "Spike without warm-up",
        "Without a warm-up the old text's cost jumps within the first steps.",
        "no warm-up: early",
    )
    yield _lower(
        "Spike with a warm-up",
        "A warm-up of 5 % has less of it after as many steps.",
        "long warm-up: early",
        "no warm-up: early",
    )
    yield _above(
        "Every arm forgets", "Old text costs more at the end even at the constant floor.", "constant: forgotten"
    )
    yield _above(
        "Same text: it rises",
        "Re-warming on the same old text raises its cost at first.",
        "same text: worst change",
    )
    yield _above(
        "Same text: it comes back",
        "(Control.) The cost falls again as the rate decays.",
        "same text: comes back",
    )
    yield _above(
        "Same text: it stays above",
        "On the same old text the cost does not come back to where it was.",
        "same text: forgotten",
    )
    yield _lower(
        "Replay forgets less",
        "With a quarter of each batch replayed, old text costs less.",
        "replay: old",
        "one: old",
    )
    yield _above(
        "Price of replay", "Replay costs little on the new text: at most 0.05 nats.", "price of replay", 0.05, "lower"
    )
    yield Claim(
        name="Replay against the union",
        statement="Re-warming with replay ends within about 0.02 nats of training on both texts from random weights.",
        metric="replay: both",
        baseline="union: both",
        unit="nats a byte",
        paper_value=0.02,
        tolerance=0.05,
    )
    for name, words in (("infinite", "The infinite schedule"), ("wsd", "WSD")):
        yield _lower(
            f"{words}: no spike",
            f"{words}, continued before its decay, has less of a jump in the first steps than re-warming at once.",
            f"{name}: early",
            "no warm-up: early",
        )
        yield _lower(
            f"{words}: both texts",
            f"{words} ends no worse than re-warming over both texts.",
            f"{name}: both",
            "one: both",
        )


PAPER = Paper(
    name="continual_pretraining",
    title="Continual pre-training of large language models: how to (re)warm your model?",
    reference="arXiv 2308.04014",
    measure=measure,
    note=(
        "A decoder of 0.12 M parameters, 1200 steps on old text and 400 on new, in place of 410 M, 300 B and 297 B "
        "tokens. The paper's finding that the constant floor loses in the end needs a long horizon; here it may lose "
        "because it learns too slowly. A warm-up of 1 % is 4 steps. Statements on replay, the union and infinite "
        "schedules are of Ibrahim et al., arXiv 2403.08763."
    ),
    claims=tuple(_claims()),
)
