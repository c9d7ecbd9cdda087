"""What a ladder is made of: the cells of a grid, which of them are fitted, and which are only predicted.

- A shape is written WIDTHxLAYERS, a cell WIDTHxLAYERS@MULTIPLIER, the multiplier in tokens per parameter.
- Every shape is trained at every multiplier. Extra cells are fitted as well; held-out cells are not.
- Held-out cells are named before anything is trained. One that is off the grid is refused: a law says little of a
  multiplier that no run had. So is one that is named among the extra cells.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from perplab.errors import PerplabError
from perplab.training import TrainConfig

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")
_LIKE_SHAPE, _LIKE_CELL = "write WIDTHxLAYERS, for example 32x2", "write WIDTHxLAYERS@MULTIPLIER, for example 32x2@80"


@dataclass(frozen=True, order=True)
class Shape:
    """Size of a decoder."""

    width: int
    layers: int

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shape that is written WIDTHxLAYERS.

        Raises:
            PerplabError: none is.
        """
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise PerplabError(f"{text!r} is not a shape", _LIKE_SHAPE)
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Cell:
    """A run to be made.

    Attributes:
        shape: of the decoder.
        multiplier: training tokens per parameter, before rounding to whole steps.
        seed: of weights and data order.
        held_out: whether the run is predicted and not fitted.
    """

    shape: Shape
    multiplier: float
    seed: int
    held_out: bool

    @property
    def name(self) -> str:
        """Of its folder and in messages."""
        return f"{_written(self.shape, self.multiplier)}-seed{self.seed}"


def _pocket_training() -> TrainConfig:
    return TrainConfig(
        block_size=64,
        batch_tokens=2048,
        micro_batch_tokens=2048,
        vocab_size=257,
        learning_rate=6e-3,
        schedule="cosine",
        evaluate_tokens=4096,
        precision="float32",
        compile=False,
    )


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """A grid of training runs.

    Raises:
        PerplabError: a shape or a cell cannot be read, a multiplier is not positive, a held-out cell is off the grid or
            among the extra cells, or there is no seed, worker or byte to measure on.
    """

    shapes: tuple[str, ...] = ("16x1", "32x2", "48x3", "64x3")
    """Decoders of the grid, WIDTHxLAYERS."""
    multipliers: tuple[float, ...] = (20.0,)
    """Tokens per parameter at which every shape is trained."""
    extra: tuple[str, ...] = ("16x1@80", "16x1@320")
    """Further cells that are fitted, WIDTHxLAYERS@MULTIPLIER."""
    held_out: tuple[str, ...] = ("32x2@80", "48x3@80")
    """Cells that are trained to be predicted and are not fitted."""
    seeds: tuple[int, ...] = (0,)
    """Each cell is trained once for each."""
    workers: int | None = None
    """Cells trained at once, on one thread each; by default one a core."""
    heldout_bytes: int = 200_000
    """Held-out text that the loss is measured on, at most."""
    training: TrainConfig = field(default_factory=_pocket_training)
    """Settings that all runs share; a cell decides width, layers, tokens and seed."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("shapes", "multipliers", "seeds"):
            if not getattr(self, name):
                raise PerplabError(f"a ladder without {name}", "give at least one")
        for name, least in (("workers", self.workers), ("heldout_bytes", self.heldout_bytes)):
            if least is not None and least < 1:
                raise PerplabError(f"{name} is {least}", "give 1 or more")
        for shape_text in self.shapes:
            Shape.parse(shape_text)
        for multiplier in self.multipliers:
            _require_positive(multiplier)
        extra, held_out = ({_parsed(text) for text in texts} for texts in (self.extra, self.held_out))
        for shape, multiplier in sorted(extra | held_out):
            _require_on_grid("shape", str(shape), self.shapes, shape, multiplier)
        known = sorted({*self.multipliers, *(multiplier for _, multiplier in extra)})
        for shape, multiplier in sorted(held_out):
            _require_on_grid("multiplier", f"{multiplier:g}", [f"{one:g}" for one in known], shape, multiplier)
        for shape, multiplier in sorted(extra & held_out):
            raise PerplabError(
                f"{_written(shape, multiplier)} is both fitted and held out", "take it from extra or from held_out"
            )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The runs: those of the grid, the extra ones and the held-out ones, for each seed."""
        held_out = [_parsed(text) for text in self.held_out]
        grid = [(Shape.parse(shape), multiplier) for multiplier in self.multipliers for shape in self.shapes]
        places = dict.fromkeys([*grid, *(_parsed(text) for text in self.extra), *held_out])
        return tuple(
            Cell(shape, multiplier, seed, (shape, multiplier) in held_out)
            for seed in dict.fromkeys(self.seeds)
            for shape, multiplier in places
        )


def _written(shape: Shape, multiplier: float) -> str:
    return f"{shape}@{multiplier:g}"


def _parsed(text: str) -> tuple[Shape, float]:
    shape, at, multiplier = text.partition("@")
    try:
        value = float(multiplier)
    except ValueError:
        value = math.nan
    if not at or math.isnan(value) or _SHAPE.fullmatch(shape) is None:
        raise PerplabError(f"{text!r} is not a cell", _LIKE_CELL)
    _require_positive(value)
    return Shape.parse(shape), value


def _require_positive(multiplier: float) -> None:
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise PerplabError(f"multiplier is {multiplier:g}", "give a positive number of tokens per parameter")


def _require_on_grid(kind: str, value: str, known: Sequence[str], shape: Shape, at: float) -> None:
    if value not in known:
        raise PerplabError(
            f"{_written(shape, at)} is off the grid, which has no {kind} {value}",
            f"choose from {', '.join(known)}, or add it to the grid",
        )
