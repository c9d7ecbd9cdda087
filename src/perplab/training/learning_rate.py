"""The learning rate of a run in absolute numbers: of a new model, or as a re-warming of what its parent had.

Decisions:
- A parent's rates are read from its lineage: the peak of its last training run, and the rate at which that run stopped,
  which is the floor of a decay that was finished and the plateau of one that was cut off before.
- Re-warming starts from that last rate and not from 0, so that a peak equal to it is a constant rate.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.training.config import TrainConfig
from perplab.training.presets import peak_learning_rate
from perplab.training.schedules import Schedule, schedule_of

_ROUNDING = 1e-9


class PastRates(NamedTuple):
    """Learning rates of the run that made a model."""

    peak: float
    last: float
    """The rate that the next step would have had."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate at each step.

    Args:
        peak: the highest.
        schedule: shares of it by step.
    """

    peak: float
    schedule: Schedule

    def __call__(self, step: int) -> float:
        """The rate of a step counted from 0."""
        return self.peak * self.schedule(step)


def learning_rate_of(config: TrainConfig, hidden_size: int, parent: LanguageModel | None) -> LearningRate:
    """The learning rate of a run.

    Args:
        config: the run.
        hidden_size: width of its model.
        parent: the model it starts from, if any.

    Raises:
        PerplabError: re-warming lacks a parent whose rates are known or falls below the rate that the parent ended
            with, or the schedule does not fit the run.
    """
    if parent is None:
        if config.rewarm is not None:
            raise PerplabError("there is no parent to re-warm", "name one with --from, or leave rewarm out")
        return LearningRate(peak_learning_rate(config, hidden_size), schedule_of(config))
    past = past_rates(parent)
    if config.learning_rate is not None:
        start = min(1.0, past.last / config.learning_rate) if past and config.learning_rate else 0.0
        return LearningRate(config.learning_rate, schedule_of(config, start=start))
    if past is None:
        raise PerplabError(
            f"{parent.name} does not tell the learning rate that it was trained with",
            "give learning_rate, and leave rewarm out",
        )
    if config.rewarm == 0:
        return LearningRate(past.last, schedule_of(replace(config, schedule="constant"), start=1.0))
    peak = past.peak * (1.0 if config.rewarm is None else config.rewarm)
    if peak < past.last * (1 - _ROUNDING):
        raise PerplabError(
            f"re-warming to {peak:g} falls below the rate {past.last:g} that {parent.name} ended with",
            f"give a rewarm of at least {past.last / past.peak:g}, or 0 to stay there",
        )
    return LearningRate(peak, schedule_of(config, start=min(1.0, past.last / peak) if peak else 0.0))


def past_rates(model: LanguageModel) -> PastRates | None:
    """The rates of the last training run in a model's lineage; None where it tells of none."""
    for step in reversed(model.lineage.history if model.lineage else ()):
        if step.verb == "train" and "learning_rate" in step.config:
            known = {field.name for field in fields(TrainConfig)} - {"rewarm"}
            config = TrainConfig(**{name: value for name, value in step.config.items() if name in known})
            peak = peak_learning_rate(config, model.model.config.hidden_size)
            return PastRates(peak, peak * schedule_of(config)(config.total_steps))
    return None
