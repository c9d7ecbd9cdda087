"""When each hidden token is revealed while a sequence is generated. None of it depends on the network.

Decisions:
- Revealing goes by steps. Whether a token is revealed in a step is chance, the same for all hidden tokens of a step, or
  it is the token's place in an order; so the step of every token is drawn before anything is generated.
- `tweedie` is the exact chance of the reverse process over a step, `euler` its first order, clipped to [0, 1]; with a
  log-linear schedule they are the same. The last step reveals what is left.
- `ordered` reveals one token a step, and is the limit of many steps. `first-hitting` takes tokens as the times at which
  they are hit fall, which are independent and equal in law: a random order.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models.diffusion.schedules import Schedule

Method = Literal["tweedie", "euler", "first-hitting", "ordered"]
Order = Literal["left-to-right", "right-to-left", "random"]

LAST_TIME = 1e-5
"""Where generation in time ends; it begins at 1."""


def reveal_steps(
    hidden: Tensor,
    steps: int,
    schedule: Schedule,
    method: Method,
    generator: torch.Generator,
    order: Order | Tensor = "random",
) -> Tensor:
    """The step that reveals each token.

    Args:
        hidden: (batch, length) booleans: what is to be generated.
        steps: of `tweedie` and `euler`; the other methods take one a token.
        schedule: mask rates in time.
        method: how tokens are chosen.
        generator: of the CPU.
        order: of `ordered`: by name, or (length,) positions, first to last.

    Returns:
        (batch, length) int64 from 0; -1 where nothing is hidden.

    Raises:
        PerplabError: no such method or order, or no step.
    """
    chance = torch.rand(hidden.shape, dtype=torch.float64, generator=generator).to(hidden.device)
    if method in ("tweedie", "euler"):
        by_then = revealed_by(steps, schedule, method).to(hidden.device)
        step = torch.searchsorted(by_then, chance, right=True)
    elif method in get_args(Method):
        priority = chance if method == "first-hitting" else _priority(order, chance)
        step = priority.masked_fill(~hidden, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    else:
        raise PerplabError(f"unknown method {method!r}", f"choose from {', '.join(get_args(Method))}")
    return step.masked_fill(~hidden, -1)


def expected_nfe(steps: int, length: int, schedule: Schedule, method: Method) -> float:
    """Network evaluations a sequence takes on average, when it is evaluated in those steps alone that reveal something.

    Args:
        steps: of the sampler.
        length: tokens to generate.
        schedule: mask rates in time.
        method: how tokens are chosen.

    Returns:
        The sum over steps of 1 - (1 - r)^length, where r is a token's chance of that step; at most `steps` and
        `length`. One evaluation a token for methods that reveal tokens one by one.
    """
    if method not in ("tweedie", "euler"):
        return float(length)
    by_then = revealed_by(steps, schedule, method)
    share = by_then.diff(prepend=by_then.new_zeros(1))
    return float(-torch.expm1(length * torch.log1p(-share)).sum())


def revealed_by(steps: int, schedule: Schedule, method: Method) -> Tensor:
    """A token's chance of being revealed by the end of each step, (steps,) float64, 1 at the last.

    Raises:
        PerplabError: there is no step.
    """
    if steps < 1:
        raise PerplabError(f"steps is {steps}", "give 1 or more")
    times = torch.linspace(1.0, LAST_TIME, steps + 1, dtype=torch.float64)
    begin, end = times[:-1], times[1:]
    alpha = schedule.alpha(begin)
    if method == "tweedie":
        reveal = (schedule.alpha(end) - alpha) / (1 - alpha)
    else:
        reveal = (schedule.rate(begin) * alpha / (1 - alpha) * (begin - end)).clamp(0, 1)
    reveal[-1] = 1.0
    return 1.0 - torch.cumprod(1.0 - reveal, dim=0)


def _priority(order: Order | Tensor, chance: Tensor) -> Tensor:
    """What to sort positions by, (batch, length)."""
    length = chance.shape[-1]
    if isinstance(order, Tensor):
        if sorted(order.tolist()) != list(range(length)):
            raise PerplabError(f"an order that is no permutation of {length} positions", "name each position once")
        return order.argsort().to(chance).expand_as(chance)
    if order == "random":
        return chance
    if order not in get_args(Order):
        raise PerplabError(f"unknown order {order!r}", f"choose from {', '.join(get_args(Order))}")
    positions = torch.arange(length, device=chance.device).to(chance).expand_as(chance)
    return positions if order == "left-to-right" else -positions
