"""A paper's claims and how they are measured.

- `measure(scale, seed, data)` returns a flat dict of named figures. It runs every model a paper's claims need once a
  seed, and several claims read from the same figures.
- What a claim compares is its effect: the figure itself, its difference from a baseline's figure, or their ratio.
  Metric and baseline of one seed are a pair: they share text, order and initial weights wherever they can.
- A paper's models and ours differ in size, so the paper's figure is stated for the effect, which can be compared.
- Scales: `smoke` runs in seconds in every test run, `pocket` in minutes on two cores, `gpu` on one accelerator, which
  `measure` asks for itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scale = Literal["smoke", "pocket", "gpu"]
Effect = Literal["value", "difference", "ratio"]
Measure = Callable[[Scale, int, Path | None], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper that a number can support or contradict.

    Args:
        name: short name, unique in its paper.
        statement: what the paper says.
        metric: the figure of `measure` that the claim is about.
        effect: what is compared: the metric's `value`, its `difference` from the baseline, or its `ratio` to it.
        baseline: the figure it is compared with; beside a `value` it is only shown.
        better: the claimed direction.
        unit: of the metric.
        paper_value: the paper's figure for the effect.
        threshold: the mean effect has to be this good; for a `value` also what the interval has to exclude.
        tolerance: the claim is that `paper_value` comes out, within so much.

    Raises:
        ValueError: the parts do not make a claim that could fail.
    """

    name: str
    statement: str
    metric: str
    effect: Effect = "difference"
    baseline: str | None = None
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    paper_value: float | None = None
    threshold: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuse a claim that nothing could contradict."""
        if self.tolerance is not None and self.paper_value is None:
            raise ValueError(f"{self.name}: a tolerance needs the paper's figure")
        if self.effect != "value" and self.baseline is None:
            raise ValueError(f"{self.name}: a {self.effect} needs a baseline")
        if self.effect == "value" and self.threshold is None and self.tolerance is None:
            raise ValueError(f"{self.name}: a value needs a threshold or a tolerance")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper, its claims, and how they are measured.

    Args:
        name: the module it is defined in, without its package.
        title: the paper's title.
        reference: where to find it, for example `arXiv 2403.08540`.
        claims: what it says.
        measure: from scale, seed and folder of third-party data (or None) to figures. Claims whose figures are missing
            count as not measured.
        seeded: whether the seed changes anything. Where it does not, one run is exact and no interval exists.
        data: what in the folder of third-party data more claims can be measured on; empty if nothing.
        note: what a reader has to know about the baselines, and how the measuring differs from the paper's.
    """

    name: str
    title: str
    reference: str
    claims: tuple[Claim, ...]
    measure: Measure
    seeded: bool = True
    data: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse two claims of one name."""
        names = [claim.name for claim in self.claims]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name} has two claims of one name")
