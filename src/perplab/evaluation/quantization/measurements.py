"""A figure of one model, with what is needed to set it beside another model's figure on the same items.

Decisions:
- Every figure is a function of sums over clusters of items: an accuracy of right answers and questions, BLEU of matched
  and possible n-grams, a bias score of counted answers. The clusters' rows are kept, so any two models can be paired
  afterwards, and a figure's interval comes from drawing clusters anew.
- A cluster is what is independent: a document, a generated item, a series of instructions.
- Which function it is has a name, so a measurement can be written as JSON and read back.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.evaluation.quantization.metrics import ambiguous_bias, bleu_of_counts, ratio, signed_share
from perplab.scoring.bootstrap import Interval, PairedDifference, ResampledRatio

Floats = npt.NDArray[np.float64]
Dimension = Literal["perplexity", "knowledge", "alignment"]

FIGURES: Mapping[str, Callable[[Floats], Floats]] = {
    "mean": ratio,
    "bleu": bleu_of_counts,
    "ambiguous bias": ambiguous_bias,
    "disambiguated bias": signed_share,
}
"""From sums (..., columns) to figures (...)."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One figure of one model.

    Attributes:
        name: such as `facts: accuracy`.
        dimension: what it is about.
        figure: key of `FIGURES`.
        counts: (clusters, columns) what is summed.
        unit: of the figure.
        best: whether it is better for being higher, lower or nearer to zero.
        chance: what guessing gives; None where that is not known.
    """

    name: str
    dimension: Dimension
    figure: str
    counts: Floats
    unit: str = ""
    best: Literal["higher", "lower", "zero"] = "higher"
    chance: float | None = None

    @property
    def value(self) -> float:
        """The figure over all clusters."""
        return float(FIGURES[self.figure](self.counts.sum(axis=0)))

    def drawn(self, resamples: int, seed: int) -> Floats:
        """The figure in each of some resamples of the clusters, (resamples,); the same draws for the same clusters."""
        clusters = len(self.counts)
        times = np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
        return FIGURES[self.figure](times @ self.counts)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return vars(self) | {"counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Measurement":
        """What `as_json` gave."""
        return cls(**{**record, "counts": np.array(record["counts"], dtype=np.float64)})


def interval(measurement: Measurement, *, resamples: int, level: float = 0.95, seed: int = 0) -> Interval | None:
    """Where a figure lies; None where there is one cluster."""
    if len(measurement.counts) < 2:
        return None
    return _resampled(measurement.value, measurement.drawn(resamples, seed), len(measurement.counts)).interval(level)


def difference(
    first: Measurement, second: Measurement, *, resamples: int, level: float = 0.95, seed: int = 0
) -> PairedDifference | None:
    """Second minus first, every draw of clusters serving both; None where there is one cluster.

    Raises:
        PerplabError: the two are not of one figure over the same clusters.
    """
    if first.name != second.name or len(first.counts) != len(second.counts):
        raise PerplabError(
            f"{first.name} over {len(first.counts)} clusters is paired with {second.name} over {len(second.counts)}",
            "measure both models with the same settings",
        )
    if len(first.counts) < 2:
        return None
    drawn = second.drawn(resamples, seed) - first.drawn(resamples, seed)
    return _resampled(second.value - first.value, drawn, len(first.counts)).difference(level)


def mean_above_chance(
    measurements: list[Measurement], *, resamples: int, level: float = 0.95, seed: int = 0
) -> Interval:
    """By how much some figures of one model are above chance, on average over the figures.

    Args:
        measurements: at least one, each with a chance level; those that guessing explains count like the others.
        resamples: of each figure's clusters.
        level: of the interval.
        seed: of the draws.
    """
    above = [
        (one.value - (one.chance or 0.0), one.drawn(resamples, seed + place) - (one.chance or 0.0))
        for place, one in enumerate(measurements)
    ]
    drawn = np.mean([values for _, values in above], axis=0)
    clusters = min(len(one.counts) for one in measurements)
    return _resampled(float(np.mean([value for value, _ in above])), drawn, clusters).interval(level)


def _resampled(value: float, drawn: Floats, clusters: int) -> ResampledRatio:
    return ResampledRatio(value, np.sort(drawn), max(clusters, 2))
