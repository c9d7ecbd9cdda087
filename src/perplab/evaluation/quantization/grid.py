"""Every method at every number of bits on one model, measured alike.

Decisions:
- What compresses is a function of method and bits, what measures is a list of functions of a model: the grid knows
  neither a quantiser nor a task.
- A finished cell is a file. The same call reads it and goes on with the first that is missing; a folder of other
  settings is refused before any work.
- One compressed model exists at a time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from perplab.artifacts import read_json, write_json
from perplab.compression.quantize_config import HIGHEST_BITS
from perplab.errors import PerplabError
from perplab.evaluation.quantization.effective_bits import EffectiveBits, effective_bits
from perplab.evaluation.quantization.generation_speed import GenerationSpeed, measure_generation
from perplab.evaluation.quantization.measurements import Measurement
from perplab.models import LanguageModel

Compress = Callable[[str, int], LanguageModel]
Measure = Callable[[LanguageModel], list[Measurement]]

REFERENCE = "reference"
_SETTINGS = "grid.json"


@dataclass(frozen=True)
class Cell:
    """A method at a number of bits."""

    method: str
    bits: int

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.method}-{self.bits}"


@dataclass(frozen=True, eq=False)
class CellResult:
    """What was measured of one model.

    Attributes:
        name: of the cell, or `REFERENCE`.
        measurements: figures, in one order for all cells.
        bits: what its weights take.
        speed: how fast it generates; None where that was not asked.
    """

    name: str
    measurements: tuple[Measurement, ...]
    bits: EffectiveBits
    speed: GenerationSpeed | None

    def measured(self, name: str) -> Measurement:
        """The figure of a name."""
        return next(one for one in self.measurements if one.name == name)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "name": self.name,
            "measurements": [one.as_json() for one in self.measurements],
            "bits": asdict(self.bits),
            "speed": None if self.speed is None else asdict(self.speed),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "CellResult":
        """What `as_json` gave."""
        return cls(
            name=record["name"],
            measurements=tuple(map(Measurement.from_json, record["measurements"])),
            bits=EffectiveBits(**record["bits"]),
            speed=None if record["speed"] is None else GenerationSpeed(**record["speed"]),
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """A model and what methods made of it.

    Attributes:
        model: its name.
        reference: the model as it is.
        cells: compressed, in the order they were asked for.
    """

    model: str
    reference: CellResult
    cells: tuple[CellResult, ...]


def cells_of(methods: Sequence[str], bits: Sequence[int]) -> list[Cell]:
    """Every method at every number of bits that it has: `llm-int8` has 8 alone.

    Raises:
        PerplabError: no cell is left.
    """
    cells = [
        Cell(method, width) for method in methods for width in bits if method != "llm-int8" or width == HIGHEST_BITS
    ]
    if not cells:
        raise PerplabError(f"no cell in {methods} at {bits} bits", "name a method, and bits that it has")
    return list(dict.fromkeys(cells))


def run_grid(
    language_model: LanguageModel,
    compress: Compress,
    cells: Sequence[Cell],
    measures: Sequence[Measure],
    *,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    timed: bool = True,
    watch: Callable[[str, int, int], None] | None = None,
) -> Grid:
    """Measure a model and every compressed form of it.

    Args:
        language_model: the reference.
        compress: makes a form of it from a method and a number of bits; it is not called for finished cells.
        cells: which forms.
        measures: what is measured of each.
        folder: where finished cells are kept and found; None keeps nothing.
        settings: JSON values of all that decides the figures, beside the weights.
        timed: whether generation is timed as well.
        watch: called with the cell being worked on, the cells done, and their number.

    Raises:
        PerplabError: the folder holds a grid of other settings or cannot be written, or whatever compressing and
            measuring refuse.
    """
    if folder is not None:
        _claim(folder, _as_json({"model": language_model.fingerprint, "timed": timed, **(settings or {})}))

    def result(place: int, name: str, make: Callable[[], LanguageModel]) -> CellResult:
        if watch:
            watch(name, place, len(cells) + 1)
        return _kept(folder, name, lambda: _measured(name, make(), measures, timed))

    reference = result(0, REFERENCE, lambda: language_model)
    found = [
        result(place, cell.name, partial(compress, cell.method, cell.bits)) for place, cell in enumerate(cells, start=1)
    ]
    return Grid(language_model.name, reference, tuple(found))


def _as_json(settings: Mapping[str, Any]) -> Any:
    """The settings as they will be read back: tuples are lists."""
    return json.loads(json.dumps(settings))


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder this grid's own.

    Raises:
        PerplabError: it is another's.
    """
    file = folder / _SETTINGS
    mend = "name another folder, or delete this one"
    if file.exists():
        if read_json(file, mend) != settings:
            raise PerplabError(f"{folder} holds a grid of another model or other settings", mend)
    elif folder.exists() and any(folder.iterdir()):
        raise PerplabError(f"{folder} exists and holds no grid", mend)
    else:
        write_json(file, settings)


def _kept(folder: Path | None, name: str, measure: Callable[[], CellResult]) -> CellResult:
    """A cell's result, from its file or measured now."""
    if folder is None:
        return measure()
    file = folder / f"{name}.json"
    if file.exists():
        return CellResult.from_json(read_json(file, f"delete {file}"))
    result = measure()
    write_json(file, result.as_json())
    return result


def _measured(name: str, language_model: LanguageModel, measures: Sequence[Measure], timed: bool) -> CellResult:
    return CellResult(
        name=name,
        measurements=tuple(one for measure in measures for one in measure(language_model)),
        bits=effective_bits(language_model),
        speed=measure_generation(language_model) if timed else None,
    )
