"""What compression cost: every cell beside the reference, with what cannot be read left out and said so.

Decisions:
- Differences are paired over the same clusters of items, with intervals by bootstrap.
- A task on which the reference is not above chance has no signal: whatever a compressed model does there means nothing.
- Alignment is gated on capability. A model that has collapsed shows no bias and believes no falsehood; its alignment
  figures are left out where its knowledge is not above chance.
- Retention is the share of the reference's figure that is left, for figures that are better for being higher.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from perplab.evaluation.quantization.grid import CellResult, Grid
from perplab.evaluation.quantization.measurements import Measurement, difference, interval, mean_above_chance
from perplab.scoring.bootstrap import PairedDifference

Reading = Literal["measured", "no signal", "below chance"]


@dataclass(frozen=True)
class Entry:
    """One figure of one cell.

    Attributes:
        value: the figure.
        difference: from the reference; None for the reference and where no interval follows.
        retention: of the reference's figure.
        reading: whether it says anything; "no signal" where the reference itself is at chance, "below chance" for
            alignment figures of a model without knowledge.
    """

    value: float
    difference: PairedDifference | None
    retention: float | None
    reading: Reading


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        cell: what was measured of it.
        entries: by name of the figure.
    """

    cell: CellResult
    entries: dict[str, Entry]


@dataclass(frozen=True)
class GridTable:
    """A grid to be read.

    Attributes:
        model: name of the reference.
        rows: the reference first.
        level: of the intervals.
    """

    model: str
    rows: Sequence[Row]
    level: float

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """The reference's figures: names, units and directions of the columns."""
        return self.rows[0].cell.measurements

    def as_json(self) -> dict[str, Any]:
        """Everything but single items, as plain JSON values."""
        return {
            "model": self.model,
            "level": self.level,
            "figures": {
                one.name: {"dimension": one.dimension, "unit": one.unit, "best": one.best, "chance": one.chance}
                for one in self.measurements
            },
            "rows": [
                {
                    "name": row.cell.name,
                    "bits": asdict(row.cell.bits) | {"is_simulated": row.cell.bits.is_simulated},
                    "speed": None if row.cell.speed is None else asdict(row.cell.speed),
                    "figures": {name: asdict(entry) for name, entry in row.entries.items()},
                }
                for row in self.rows
            ],
        }


def grid_table(grid: Grid, *, resamples: int = 2_000, level: float = 0.95, seed: int = 0) -> GridTable:
    """Set every cell of a grid beside its reference.

    Args:
        grid: what was measured.
        resamples: bootstrap resamples of clusters.
        level: of the intervals.
        seed: of the draws.
    """
    draws: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    silent = {one.name for one in grid.reference.measurements if not _has_signal(one, draws)}
    rows = [Row(cell, _entries(cell, grid.reference, silent, draws)) for cell in (grid.reference, *grid.cells)]
    return GridTable(grid.model, rows, level)


def _entries(cell: CellResult, reference: CellResult, silent: set[str], draws: dict[str, Any]) -> dict[str, Entry]:
    is_capable = _is_capable(cell, silent, draws)
    entries = {}
    for base in reference.measurements:
        own = cell.measured(base.name)
        reading: Reading = "measured"
        if base.name in silent:
            reading = "no signal"
        elif base.dimension == "alignment" and not is_capable:
            reading = "below chance"
        entries[base.name] = Entry(
            value=own.value,
            difference=None if cell is reference else difference(base, own, **draws),
            retention=own.value / base.value if base.best == "higher" and base.value > 0 else None,
            reading=reading,
        )
    return entries


def _has_signal(measurement: Measurement, draws: dict[str, Any]) -> bool:
    """Whether a figure is above what guessing gives; true where nobody knows what guessing gives."""
    if measurement.chance is None:
        return measurement.best != "higher" or measurement.value > 0
    found = interval(measurement, **draws)
    return measurement.value > measurement.chance if found is None else found.low > measurement.chance


def _is_capable(cell: CellResult, silent: set[str], draws: dict[str, Any]) -> bool:
    """Whether knowledge is above chance, on average over the tasks with a signal; true where no task can tell."""
    telling = [
        one
        for one in cell.measurements
        if one.dimension == "knowledge" and one.chance is not None and one.name not in silent
    ]
    return not telling or mean_above_chance(telling, **draws).low > 0
