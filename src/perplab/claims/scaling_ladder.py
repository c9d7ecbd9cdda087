"""Language models scale reliably with over-training (Gadre et al., arXiv 2403.08540), on a ladder trained here.

A hidden Markov model over 64 characters draws sentences of 63 symbols, a document each, and decoders with rows of 64
tokens read whole sentences: what the best reader pays for the held-out ones, their irreducible loss, is known without
error. Four shapes are trained at 20 tokens per parameter and the smallest at 80 and 320 as well; the second and the
third shape at 80 are held out. No run sees a sentence twice.

- The over-training law is fitted with its irreducible loss free, and with that fixed to the known one.
- Beside it stand what it has to beat: the power law in compute of the runs at 20, and the last value.
- The tasks are the next symbol after so many symbols of fresh sentences, answered by the likeliest. Their mean error is
  predicted from the predicted loss by the exponential law, and by a straight line.
- Parallel lines: the law says that the reducible loss falls with one exponent at every multiplier. The exponent from
  the second to the third shape at 80, which no fit has seen, stands beside that of the same two shapes at 20.

Every run has the one learning rate and batch that suit the grid at 20 tokens per parameter.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perplab import laws
from perplab.claims.claim import Claim, Paper, Scale
from perplab.laws.baselines import LAST_VALUE, POWER_LAW, STRAIGHT_LINE
from perplab.laws.ladder import Ladder, LadderConfig, run_ladder
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.text import END_OF_TEXT, Corpus, Document
from perplab.text.synthetic.languages import HMM, language_characters
from perplab.training import TrainConfig

_SYMBOLS, _LENGTH = 64, 63
_STATES, _CONCENTRATION = 128, (0.015, 0.02)
_CHUNK, _BATCH = 512, 1024
_LOSS, _LOSS_KNOWN, _ERROR = "loss", "loss, irreducible loss known", "task error"
_ASKED_AFTER = (2, 8, 24, 60)
"""Symbols before the one that a task asks for."""


@dataclass(frozen=True)
class _Size:
    """How large everything is."""

    ladder: LadderConfig
    sentences: int
    measured: int


def _ladder(shapes: tuple[str, ...], low: int, middle: int, high: int, seed: int, workers: int) -> LadderConfig:
    first, second, third, *_ = shapes
    return LadderConfig(
        shapes=shapes,
        multipliers=(low,),
        extra=(f"{first}@{middle}", f"{first}@{high}"),
        held_out=(f"{second}@{middle}", f"{third}@{middle}"),
        seeds=(seed,),
        workers=workers,
        heldout_bytes=10**9,
        training=TrainConfig(
            block_size=_LENGTH + 1,
            batch_tokens=_BATCH,
            micro_batch_tokens=_BATCH,
            learning_rate=5e-3,
            schedule="cosine",
            warmup=0.05,
            weight_decay=0.03,
            tie_word_embeddings=False,
            evaluate_every=10**9,
            evaluate_tokens=1024,
            checkpoint_every=10**9,
            precision="float32",
            compile=False,
        ),
    )


def _size(scale: Scale, seed: int, workers: int) -> _Size:
    if scale == "smoke":
        return _Size(_ladder(("8x1", "12x1", "16x1"), 5, 10, 20, seed, workers), sentences=3_000, measured=200)
    return _Size(_ladder(("16x1", "32x1", "48x1", "64x2"), 20, 80, 320, seed, workers), sentences=46_000, measured=1500)


@dataclass(frozen=True)
class _Sentences:
    """Independent sentences of a language, a document each, drawn anew at every reading."""

    language: HMM
    number: int
    seed: int

    def identity(self) -> str:
        return f"sentences {self.language.identity()} {self.number} {self.seed}"

    def approximate_bytes(self) -> int:
        return self.number * self.language.length

    def documents(self) -> Iterator[Document]:
        for place, text in enumerate(_as_text(self.ids())):
            yield Document(text, "sentences", f"sentence {place}")

    def ids(self) -> npt.NDArray[np.int64]:
        """(sentences, length)."""
        random = np.random.default_rng(self.seed)
        chunks = [min(_CHUNK, self.number - start) for start in range(0, self.number, _CHUNK)]
        return np.concatenate([self.language.draw(chunk, random) for chunk in chunks])

    def corpus(self, name: str) -> Corpus:
        return Corpus(name, "all", self)


@dataclass(frozen=True)
class _NextSymbol:
    """The tasks: the next symbol after so many symbols of a sentence."""

    sentences: _Sentences

    @property
    def name(self) -> str:
        return f"next symbol after {_ASKED_AFTER} of {self.sentences.identity()}"

    def __call__(self, language_model: LanguageModel) -> dict[str, float]:
        scores = score(language_model, self.sentences.corpus("tasks"), metrics=["rank"])
        wrong = scores.tokens["rank"].to_numpy().reshape(self.sentences.number, -1) > 1
        return {f"after {asked} symbols": float(wrong[:, asked].mean()) for asked in _ASKED_AFTER}


def _as_text(ids: npt.NDArray[np.int64]) -> Iterator[str]:
    characters = np.frombuffer(language_characters(_SYMBOLS).encode("ascii"), dtype=np.uint8)
    return (line.tobytes().decode("ascii") for line in characters[ids])


def _write_tokenizer(folder: Path) -> None:
    """A token a character, and one that begins and ends sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: index for index, character in enumerate(language_characters(_SYMBOLS))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(folder)


def measure(scale: Scale, seed: int, data: Path | None) -> dict[str, float]:
    """Train the ladder and predict its held-out runs; on one core, because seeds share the others."""
    with tempfile.TemporaryDirectory() as folder:
        ladder, entropy = ladder_of_seed(scale, seed, Path(folder), workers=1)
    return _figures(ladder.fitted, ladder.held_out, entropy)


def ladder_of_seed(scale: Scale, seed: int, folder: Path, *, workers: int) -> tuple[Ladder, float]:
    """The ladder, and what the best reader pays for its held-out sentences in nats a symbol."""
    size = _size(scale, seed, workers)
    language = HMM.random(states=_STATES, symbols=_SYMBOLS, length=_LENGTH, seed=seed, concentration=_CONCENTRATION)
    text, measured_on, asked = (
        _Sentences(language, number, part) for part, number in enumerate((size.sentences, size.measured, size.measured))
    )
    _write_tokenizer(folder / "tokenizer")
    ladder = run_ladder(
        text.corpus(f"language {seed}"),
        folder / "ladder",
        size.ladder,
        heldout=measured_on.corpus("held-out sentences"),
        tokenizer=str(folder / "tokenizer"),
        tasks=_NextSymbol(asked),
        progress=False,
    )
    return ladder, -float(np.mean(language.log_likelihood(measured_on.ids()))) / _LENGTH


def _figures(fitted: laws.Runs, held_out: laws.Runs, entropy: float) -> dict[str, float]:
    columns = (fitted.params, fitted.tokens, fitted.loss)
    law = laws.OverTrainingLaw.fit(*columns)
    loss = laws.predict_runs(law, held_out)
    baselines = laws.loss_baselines(fitted, held_out)
    losses = {
        _LOSS: loss,
        _LOSS_KNOWN: laws.predict_runs(laws.OverTrainingLaw.fit_above(entropy, *columns), held_out),
        **{f"{_LOSS}, {name}": baselines[name] for name in (POWER_LAW, LAST_VALUE)},
    }
    guesses = laws.error_baselines(fitted, held_out, loss)
    errors = {
        _ERROR: laws.DownstreamErrorLaw.fit(fitted.loss, fitted.error).predict(loss),
        **{f"{_ERROR}, {name}": guesses[name] for name in (STRAIGHT_LINE, LAST_VALUE)},
    }
    missed = {name: laws.relative_error(guess, held_out.loss) for name, guess in losses.items()}
    missed |= {name: laws.relative_error(guess, held_out.error) for name, guess in errors.items()}
    figures = {name: 100 * float(values.mean()) for name, values in missed.items()}
    for row, place in enumerate(("second", "third")):
        figures |= {f"{place} shape: {name}": 100 * float(values[row]) for name, values in missed.items()}
    same_shapes = fitted.where(lambda run: run.params in held_out.params)
    return figures | {
        "eta": law.eta,
        "irreducible loss, fitted": law.irreducible,
        "irreducible loss, exact": entropy,
        "exponent, low M": _exponent(same_shapes, entropy),
        "exponent, middle M": _exponent(held_out, entropy),
    }


def _exponent(runs: laws.Runs, entropy: float) -> float:
    """How fast the reducible loss falls with compute from the smaller to the larger of two runs."""
    smaller, larger = sorted(runs, key=lambda run: run.compute)
    fallen = np.log((smaller.loss - entropy) / (larger.loss - entropy))
    return float(fallen / np.log(larger.compute / smaller.compute))


def _beats(name: str, metric: str, subject: str, baseline: str, against: str) -> Claim:
    return Claim(
        name=name,
        statement=f"{subject} of runs that were not fitted is predicted better than by the {baseline}",
        metric=metric,
        baseline=f"{against}, {baseline}",
        unit="%",
    )


_KNOWN = "The loss, with the irreducible loss known,"

PAPER = Paper(
    name="scaling_ladder",
    title="Language models scale reliably with over-training and on downstream tasks (ladder)",
    reference="arXiv 2403.08540",
    measure=measure,
    note=(
        "Decoders of 6 k to 115 k parameters on a generated language whose entropy is known. Six runs are fitted, and "
        "two at 80 tokens per parameter are predicted. Relative errors; the power law is of the four runs at M = 20. "
        "A seed draws another language, other weights and another order. The paper has models of 11 M to 6.9 B "
        "parameters on text of the web and 17 tasks; the tasks here are the next symbol at four places of a sentence. "
        "Language, shapes and learning rate were chosen on another seed, whose held-out runs had been seen."
    ),
    claims=(
        _beats("loss, against the last value", _LOSS, "The loss", LAST_VALUE, _LOSS),
        _beats("loss, against the power law", _LOSS, "The loss", POWER_LAW, _LOSS),
        _beats("loss with E known, against the power law", _LOSS_KNOWN, _KNOWN, POWER_LAW, _LOSS),
        Claim(
            name="parallel lines",
            statement="The reducible loss falls with compute as fast at M = 80 as at M = 20",
            metric="exponent, middle M",
            effect="ratio",
            baseline="exponent, low M",
            paper_value=1.0,
            tolerance=0.1,
        ),
        _beats("task error, against the straight line", _ERROR, "The error over tasks", STRAIGHT_LINE, _ERROR),
        _beats("task error, against the last value", _ERROR, "The error over tasks", LAST_VALUE, _ERROR),
    ),
)
