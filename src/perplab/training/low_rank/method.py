"""The engine of methods that train a few numbers at a time and begin anew every so many steps.

Decisions:
- Steps make iterations, iterations make rounds. Which iteration a step is in follows from its number, and what is drawn
  in an iteration follows from seed and iteration, so that a run needs no state beside its tensors: those of the layers
  are in the model's state dict, and resuming is exact.
- Counted are optimiser steps, however many passes a step takes.
- A parameter's optimiser state is reset in place: it keeps its shape and a checkpoint its names.
- The learning rate's second warm-up multiplies the schedule, and the first iteration has none.
- Full training is the engine without layers.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from perplab.training.low_rank.config import LowRankConfig
from perplab.training.low_rank.layer import ReparameterisedLinear
from perplab.training.low_rank.replacing import replace_layers


@dataclass(frozen=True)
class Cycle:
    """How steps make iterations and rounds.

    Args:
        iteration_steps: steps of an iteration; None where one lasts for ever.
        warmup: steps over which the learning rate rises again.
        iterations_per_round: iterations of a round.
    """

    iteration_steps: int | None = None
    warmup: int = 0
    iterations_per_round: int = 1

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate of a step, counted from 0."""
        if self.iteration_steps is None or step < self.iteration_steps or not self.warmup:
            return 1.0
        return min(1.0, (step % self.iteration_steps + 1) / self.warmup)

    def begins_iteration(self, step: int) -> bool:
        """Whether a step, counted from 0, is the first of its iteration."""
        return step == 0 if self.iteration_steps is None else step % self.iteration_steps == 0

    def iteration(self, step: int) -> int:
        """The iteration that a step belongs to, both counted from 0."""
        return 0 if self.iteration_steps is None else step // self.iteration_steps

    def begins_round(self, iteration: int) -> bool:
        """Whether an iteration is the first of its round."""
        return iteration % self.iterations_per_round == 0


class LowRankTraining:
    """What a training loop calls.

    Args:
        layers: what the method has put into the model.
        cycle: when it begins anew.
        seed: of what it draws.
    """

    def __init__(self, layers: Sequence[ReparameterisedLinear] = (), cycle: Cycle | None = None, seed: int = 0) -> None:
        self.layers, self.cycle, self.seed = layers, cycle or Cycle(), seed

    def rate_factor(self, step: int) -> float:
        """Factor on the scheduled learning rate of a step, counted from 0."""
        return self.cycle.rate_factor(step)

    def before_update(self, step: int) -> None:
        """Call between backward pass and optimiser step."""
        first = self.cycle.begins_iteration(step)
        for layer in self.layers:
            layer.before_update(first=first)

    def after_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Call after the optimiser step of this number, counted from 0; at the end of an iteration begin the next."""
        for layer in self.layers:
            layer.after_update()
        if self.cycle.begins_iteration(step + 1):
            self._restart(self.cycle.iteration(step + 1), optimizer)

    def _restart(self, iteration: int, optimizer: torch.optim.Optimizer) -> None:
        generator = iteration_generator(self.seed, iteration)
        new_round = self.cycle.begins_round(iteration)
        for layer in self.layers:
            for parameter in layer.restart(generator, new_round=new_round):
                reset_state(optimizer, parameter)


def apply_low_rank(model: nn.Module, config: LowRankConfig, total_steps: int | None = None) -> LowRankTraining:
    """Put a model under a low-rank method, in place; `merge_low_rank` makes it a plain one again.

    Args:
        model: a causal language model of a known family, whose blocks are taken; or any module.
        config: method, rank and cycle.
        total_steps: of the run, if known: a run that is shorter than a round gets a warning.

    Returns:
        What the training loop has to call.

    Raises:
        PerplabError: the model has no linear layers, is quantised, or is already under such a method.
    """
    layers = replace_layers(model, config, iteration_generator(config.seed, 0))
    cycle = cycle_of(config, layers)
    if total_steps is not None:
        _warn_of_unfinished_round(cycle, total_steps)
    return LowRankTraining([*layers.values()], cycle, config.seed)


def cycle_of(config: LowRankConfig, layers: Mapping[str, ReparameterisedLinear]) -> Cycle:
    """The cycle of a method: `lora` has none, `galore` keeps its learning rate, only `sst` has rounds to speak of."""
    match config.method:
        case "lora":
            return Cycle()
        case "galore":
            return Cycle(config.iteration_steps)
        case "relora":
            return Cycle(config.iteration_steps, config.iteration_warmup)
        case "sst":
            width = max(min(layer.out_features, layer.in_features) for layer in layers.values())
            rounds = config.iterations_per_round or max(1, round(width / config.rank))
            return Cycle(config.iteration_steps, config.iteration_warmup, rounds)


def _warn_of_unfinished_round(cycle: Cycle, total_steps: int) -> None:
    if cycle.iteration_steps is None:
        return
    needed = cycle.iteration_steps * cycle.iterations_per_round
    if total_steps < needed:
        warnings.warn(
            f"{total_steps} steps end before the first round, which takes {needed}: some directions never train; "
            "shorten iteration_steps or train longer",
            stacklevel=3,
        )


def iteration_generator(seed: int, iteration: int) -> torch.Generator:
    """The generator of what is drawn when an iteration begins."""
    state = int(np.random.SeedSequence((seed, iteration)).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def reset_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Set an optimiser's state of a parameter to what it was before the first step."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, torch.Tensor):
            value.zero_()
