"""Learning rate by step, as pure functions of the step: a share of the peak.

Decisions:
- Step t counts from 0 and warm-up gives (t + 1) / W, so no step is wasted at a rate of 0.
- A decay reaches its floor one step after the last, so that the last step still learns.
- `start` is the share of the peak that warm-up begins from: 0 for a new model, the old run's share when re-warming.
- The infinite schedule (Ibrahim et al. 2024, section 7): warm-up, cosine cool-down to a plateau that knows no horizon,
  and an exponential anneal when a checkpoint is to be shipped. Continue from a checkpoint before the anneal.
"""

import math
from dataclasses import dataclass

from perplab.errors import PerplabError
from perplab.training.config import ScheduleName, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Course of the learning rate over a run.

    Args:
        name: shape after warm-up.
        total_steps: horizon.
        warmup_steps: linear steps from `start` to the peak.
        cooldown_steps: cosine steps from the peak to `plateau` (infinite).
        decay_steps: steps of the final decay (wsd: linear, infinite: exponential).
        plateau: constant share of the peak after cool-down (infinite).
        final: share of the peak at the end (cosine, wsd, infinite).
        start: share of the peak before the first step.

    Raises:
        PerplabError: the phases do not fit into the horizon, or an exponential decay would have to end at 0.
    """

    name: ScheduleName
    total_steps: int
    warmup_steps: int = 0
    cooldown_steps: int = 0
    decay_steps: int = 0
    plateau: float = 1.0
    final: float = 0.0
    start: float = 0.0

    def __post_init__(self) -> None:
        """Refuse phases that do not fit."""
        phases = {
            "constant": self.warmup_steps,
            "cosine": self.warmup_steps,
            "wsd": self.warmup_steps + self.decay_steps,
            "infinite": self.warmup_steps + self.cooldown_steps + self.decay_steps,
        }
        if phases[self.name] > self.total_steps:
            raise PerplabError(
                f"the phases of the {self.name} schedule take {phases[self.name]} of {self.total_steps} steps",
                "shorten warm-up, cool-down or decay",
            )
        if self.name == "infinite" and self.decay_steps and self.final <= 0:
            raise PerplabError("an exponential decay cannot end at 0", "give a positive final share")

    def __call__(self, step: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        if step < self.warmup_steps:
            return self.start + (1 - self.start) * (step + 1) / self.warmup_steps
        shape = {"constant": self._constant, "cosine": self._cosine, "wsd": self._wsd, "infinite": self._infinite}
        return shape[self.name](step)

    def _constant(self, step: int) -> float:
        return 1.0

    def _cosine(self, step: int) -> float:
        length = self.total_steps - self.warmup_steps
        return _cosine_between(1.0, self.final, (step - self.warmup_steps) / length if length else 1.0)

    def _wsd(self, step: int) -> float:
        left = max(0, self.total_steps - step)
        if left >= self.decay_steps:
            return 1.0
        return self.final + (1 - self.final) * left / self.decay_steps

    def _infinite(self, step: int) -> float:
        into_decay = self.decay_steps - max(0, self.total_steps - step)
        if into_decay > 0:
            return float(self.plateau * (self.final / self.plateau) ** (into_decay / self.decay_steps))
        cooled = (step - self.warmup_steps) / self.cooldown_steps if self.cooldown_steps else 1.0
        return _cosine_between(1.0, self.plateau, cooled)


def schedule_of(config: TrainConfig) -> Schedule:
    """The schedule of a run from random weights: the config's shares of its steps, rounded."""
    steps = config.total_steps
    return Schedule(
        name=config.schedule,
        total_steps=steps,
        warmup_steps=round(config.warmup * steps),
        cooldown_steps=round(config.cooldown * steps) if config.schedule == "infinite" else 0,
        decay_steps=round(config.decay * steps) if config.schedule in ("wsd", "infinite") else 0,
        plateau=config.plateau,
        final=config.final,
    )


def _cosine_between(high: float, low: float, progress: float) -> float:
    return low + (high - low) / 2 * (1 + math.cos(math.pi * min(1.0, progress)))
