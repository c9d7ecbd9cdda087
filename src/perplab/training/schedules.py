"""Learning rate by step, as pure functions of the step: a share of the peak.

Decisions:
- A schedule is an absolute step and a horizon of its own. A run that ends before the horizon is cut off; it does not
  squeeze the schedule. After the horizon the last rate stays.
- Step t counts from 0 and warm-up gives (t + 1) / W, so no step is wasted at a rate of 0.
- A decay reaches its floor one step after the last, so that the last step still learns.
- `start` is the share of the peak that warm-up begins from: 0 for a new model, the old run's share when re-warming.
- `clipped-cosine` is GPT-NeoX's of 2023, which the runs of Gupta et al. (2023) had: a cosine to 0 over the horizon,
  shifted by the warm-up and cut off at the floor, which it meets early (after 0.795 of the horizon for a tenth).
- The infinite schedule (Ibrahim et al. 2024, section 7): warm-up, cool-down to a plateau that knows no horizon, and an
  anneal when a checkpoint is to be shipped. Continue from a checkpoint before the anneal.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from perplab.errors import PerplabError

if TYPE_CHECKING:
    from perplab.training.config import TrainConfig

ScheduleName = Literal["constant", "cosine", "clipped-cosine", "wsd", "infinite"]
CooldownShape = Literal["cosine", "inverse-sqrt"]
DecayShape = Literal["linear", "1-sqrt", "exponential"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Course of the learning rate.

    Args:
        name: shape after warm-up.
        total_steps: horizon.
        warmup_steps: linear steps from `start` to the peak.
        cooldown_steps: steps from the peak to `plateau` (infinite).
        decay_steps: steps of the final decay (wsd, infinite).
        plateau: constant share of the peak after cool-down (infinite).
        final: share of the peak at the end (all but constant).
        start: share of the peak before the first step.
        cooldown_shape: course of the cool-down.
        decay_shape: course of the final decay; by default linear for wsd, exponential for infinite.

    Raises:
        PerplabError: a length is no whole number of steps, the phases do not fit into the horizon, the floor lies above
            the peak or the plateau, or an exponential decay would have to end at 0.
    """

    name: ScheduleName
    total_steps: int
    warmup_steps: int = 0
    cooldown_steps: int = 0
    decay_steps: int = 0
    plateau: float = 1.0
    final: float = 0.0
    start: float = 0.0
    cooldown_shape: CooldownShape = "cosine"
    decay_shape: DecayShape | None = None

    def __post_init__(self) -> None:
        """Refuse what is no course."""
        self._check_lengths()
        if self.start > 1:
            raise PerplabError(f"the warm-up begins at {self.start:g} times the peak", "give a higher peak")
        if self.final > 1:
            raise PerplabError(f"the lowest rate is {self.final:g} times the peak", "give a final share of at most 1")
        if self.name == "infinite" and not self.final <= self.plateau <= 1:
            raise PerplabError(
                f"the plateau {self.plateau:g} does not lie between the last rate {self.final:g} and the peak 1",
                "give a plateau between them",
            )
        if self._decays and self._shape_of_decay == "exponential" and self.final <= 0:
            raise PerplabError("an exponential decay cannot end at 0", "give a positive final share")
        if self.cooldown_steps and self.cooldown_shape == "inverse-sqrt" and self.plateau <= 0:
            raise PerplabError("an inverse square root cannot reach 0", "give a positive plateau")

    def _check_lengths(self) -> None:
        for name in ("total_steps", "warmup_steps", "cooldown_steps", "decay_steps"):
            steps = getattr(self, name)
            if type(steps) is not int or steps < (name == "total_steps"):
                raise PerplabError(
                    f"{name} is {steps!r}", f"give a whole number of {int(name == 'total_steps')} or more steps"
                )
        phases = self.warmup_steps
        phases += self.decay_steps if self._decays else 0
        phases += self.cooldown_steps if self.name == "infinite" else 0
        if phases > self.total_steps:
            raise PerplabError(
                f"the phases of the {self.name} schedule take {phases} of {self.total_steps} steps",
                "shorten warm-up, cool-down or decay",
            )

    def __call__(self, step: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        if step < self.warmup_steps:
            return self.start + (1 - self.start) * (step + 1) / self.warmup_steps
        step = min(step, self.total_steps)
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            return _between(1.0, self.final, _cosine(_progress(step - self.warmup_steps, self._after_warmup)))
        if self.name == "clipped-cosine":
            return max(self.final, _cosine((step - self.warmup_steps) / self.total_steps))
        into_decay = step - (self.total_steps - self.decay_steps)
        if into_decay > 0:
            return self._decayed(into_decay / self.decay_steps)
        return self._cooled(step - self.warmup_steps) if self.name == "infinite" else 1.0

    @property
    def _after_warmup(self) -> int:
        return self.total_steps - self.warmup_steps

    @property
    def _decays(self) -> bool:
        return self.name in ("wsd", "infinite") and self.decay_steps > 0

    @property
    def _shape_of_decay(self) -> DecayShape:
        return self.decay_shape or ("exponential" if self.name == "infinite" else "linear")

    def _cooled(self, steps: int) -> float:
        progress = _progress(steps, self.cooldown_steps)
        if self.cooldown_shape == "cosine":
            return _between(1.0, self.plateau, _cosine(progress))
        return 1 / math.sqrt(1 + progress * (self.plateau**-2 - 1))

    def _decayed(self, progress: float) -> float:
        high = self.plateau if self.name == "infinite" else 1.0
        if self._shape_of_decay == "exponential":
            return float(high * (self.final / high) ** progress)
        return _between(high, self.final, _LEFT[self._shape_of_decay](progress))


_LEFT: Mapping[DecayShape, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""What is left of a decay, from 1 to 0."""


def schedule_of(config: "TrainConfig", *, start: float = 0.0) -> Schedule:
    """The schedule of a run: the config's shares of its horizon, in steps, rounded.

    Args:
        config: the run.
        start: share of the peak before the first step.

    Raises:
        PerplabError: whatever `Schedule` refuses, or the warm-up is longer than the run.
    """
    horizon, steps = config.horizon_steps, config.total_steps
    warmup = round(config.warmup * horizon)
    if warmup > steps:
        raise PerplabError(
            f"a warm-up of {warmup} steps is longer than the run of {steps}", "lower warmup, or train on more tokens"
        )
    return Schedule(
        name=config.schedule,
        total_steps=horizon,
        warmup_steps=warmup,
        cooldown_steps=round(config.cooldown * horizon) if config.schedule == "infinite" else 0,
        decay_steps=round(config.decay * horizon) if config.schedule in ("wsd", "infinite") else 0,
        plateau=config.plateau if config.schedule == "infinite" else 1.0,
        final=config.final,
        start=start,
        cooldown_shape=config.cooldown_shape,
        decay_shape=config.decay_shape,
    )


def _progress(steps: int, length: int) -> float:
    return min(1.0, steps / length) if length else 1.0


def _cosine(progress: float) -> float:
    """Half a period, from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def _between(high: float, low: float, left: float) -> float:
    return low + (high - low) * left
