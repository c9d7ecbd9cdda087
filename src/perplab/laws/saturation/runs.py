"""Runs that end at the same loss: a model is trained to the floor, forked, and every fork settles the same way.

Decisions:
- A run stops on its excess over the language's entropy, measured on sentences that it never trains on. Loss alone would
  not tell how far there is to go.
- Forks start from the same weights and take the same number of steps. What an algorithm's own noise adds to the loss
  goes away when all of them settle, by the same steps of one algorithm whose rate falls to 0.
"""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.laws.saturation.algorithms import Algorithm, descend
from perplab.laws.saturation.excess import Excess, excess_loss
from perplab.text.synthetic.languages import Language

_MEASURED, _FORKED = 2**32, 2**33
"""Seeds of sentences for measuring and for forks begin here, apart from those of training to the floor."""
_TO_THE_FLOOR = Algorithm(decay=True, warmup=50)
_SETTLING = Algorithm(learning_rate=1e-3, labels="exact", decay=True)


@dataclass(frozen=True, kw_only=True)
class SaturationConfig:
    """How to reach the floor.

    Args:
        bound: excess in nats at which to stop.
        max_steps: after which to stop in any case; the learning rate falls to 0 by then.
        check_every: steps between two measurements.
        sentences: of a measurement.
        algorithm: how to train.
        seed: of the sentences.

    Raises:
        PerplabError: the bound is not positive, or a number of steps is not.
    """

    bound: float = 0.01
    max_steps: int = 4000
    check_every: int = 200
    sentences: int = 512
    algorithm: Algorithm = _TO_THE_FLOOR
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what never ends or never begins."""
        if self.bound <= 0:
            raise PerplabError(f"an excess loss below {self.bound:g}", "give a positive bound: the excess is never 0")
        if self.max_steps < 1 or self.check_every < 1:
            raise PerplabError(f"{self.max_steps} steps, measured every {self.check_every}", "give 1 or more")


@dataclass(frozen=True)
class Saturation:
    """How a run went.

    Attributes:
        steps: taken.
        excess: at the end.
        reached: whether the excess is below the bound.
        course: (steps, excess in nats) of each measurement.
    """

    steps: int
    excess: Excess
    reached: bool
    course: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class ForkConfig:
    """How forks go on.

    Args:
        steps: of each fork by its own algorithm.
        settling: the algorithm that ends all of them.
        settling_steps: its steps.
        seed: of the sentences; all forks see the same.

    Raises:
        PerplabError: a number of steps is negative.
    """

    steps: int = 2000
    settling: Algorithm = _SETTLING
    settling_steps: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse steps backwards."""
        if self.steps < 0 or self.settling_steps < 0:
            raise PerplabError(f"{self.steps} and {self.settling_steps} steps", "give 0 or more")


def saturate(
    model: PreTrainedModel, language: Language, config: SaturationConfig, *, progress: bool = False
) -> Saturation:
    """Train a model in place until its excess loss is below a bound.

    Args:
        model: a causal model with a token for each symbol.
        language: what it learns.
        config: how.
        progress: whether to show a bar.

    Raises:
        PerplabError: the model has too few tokens, or its loss is no longer finite.
    """
    course: list[tuple[int, float]] = []
    taken = 0
    steps = descend(
        model,
        language,
        config.algorithm,
        config.max_steps,
        seed=config.seed,
        title="to the floor",
        progress=progress,
    )
    for taken in steps:
        if taken % config.check_every and taken != config.max_steps:
            continue
        excess = excess_loss(model, language, sentences=config.sentences, seed=_MEASURED + config.seed)
        course.append((taken, excess.value))
        if excess.value < config.bound:
            break
    steps.close()
    model.eval()
    return Saturation(taken, excess, excess.value < config.bound, tuple(course))


def forked(
    model: PreTrainedModel,
    language: Language,
    algorithms: Mapping[str, Algorithm],
    config: ForkConfig,
    *,
    progress: bool = False,
) -> dict[str, PreTrainedModel]:
    """Go on from one model by several algorithms, and let all of them settle the same way.

    Args:
        model: at the floor; left as it is.
        language: what it learnt.
        algorithms: by name.
        config: how many steps, and how to settle.
        progress: whether to show bars.

    Returns:
        A model for each name, in evaluation mode.

    Raises:
        PerplabError: the model has too few tokens, or a loss is no longer finite.
    """
    forks = {}
    for name, algorithm in algorithms.items():
        forks[name] = copy.deepcopy(model)
        stages = ((algorithm, config.steps, name), (config.settling, config.settling_steps, f"{name}, settling"))
        for stage, (how, steps, title) in enumerate(stages):
            seed = _FORKED + 2 * config.seed + stage
            run = descend(forks[name], language, how, steps, seed=seed, title=title, progress=progress)
            deque(run, maxlen=0)
    return forks
