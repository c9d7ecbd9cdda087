"""Generating with a masked diffusion model: sequences whose hidden tokens are drawn, whatever else they hold.

Decisions:
- What is given stays: a prompt, a suffix, or tokens anywhere are positions that do not hold the mask token.
- When each token is revealed, and the number that its draw is made with, are known before the network is first asked
  (`unmasking.py`). So a sequence is evaluated once for each step that reveals something in it, and in no other; nothing
  is stored between steps; and how evaluations are batched changes no sample.
- Tokens are drawn by inverting the distribution function in float64. Gumbel noise in float32 cuts off the tail, and
  with many steps acts like a lower temperature.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.unmasking import Method, Order, reveal_steps

Cache = Literal["sequence", "batch", "none"]
"""When the network is asked anew: for a sequence that changes, for all when any of them changes, or in every step."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to generate.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    steps: int = 128
    """Steps of the sampler (tweedie, euler); the other methods take one a token."""
    method: Method = "tweedie"
    """How tokens are revealed: several a step by chance (tweedie, euler), or one by one (first-hitting, ordered)."""
    order: Order = "random"
    """In which order `ordered` goes."""
    temperature: float = 1.0
    """Divides the log-probabilities; 0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this much probability."""
    cache: Cache = "sequence"
    """Which sequences of a batch a change makes the network read again; no sample depends on it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, least in (("steps", 1), ("top_k", 0), ("temperature", 0)):
            if getattr(self, name) < least:
                raise PerplabError(f"{name} is {getattr(self, name)}", f"give {least} or more")
        if not 0 < self.top_p <= 1:
            raise PerplabError(f"top_p is {self.top_p}", "give a probability above 0, at most 1")
        for name, choices in (("method", Method), ("order", Order), ("cache", Cache)):
            if getattr(self, name) not in get_args(choices):
                raise PerplabError(
                    f"unknown {name} {getattr(self, name)!r}", f"choose from {', '.join(get_args(choices))}"
                )


class Samples(NamedTuple):
    """What was generated."""

    ids: Tensor
    """(batch, length), without mask tokens."""
    evaluations: Tensor
    """(batch,) int64: how often the network read each sequence."""


@torch.no_grad()
def sample(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    config: SamplingConfig,
    generator: torch.Generator,
    *,
    order: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Samples:
    """Fill in what is hidden.

    Args:
        diffusion: the model, in evaluation mode.
        ids: (batch, length), the mask token where a token is to be generated.
        config: how.
        generator: of the CPU.
        order: (length,) positions, first to last, in the place of `config.order`.
        attention_mask: (batch, length), 0 for padding.
    """
    ids = ids.clone()
    hidden = ids == diffusion.mask_token_id
    by = config.order if order is None else order
    step_of = reveal_steps(hidden, config.steps, diffusion.schedule, config.method, generator, by)
    chance = torch.rand(ids.shape, dtype=torch.float64, generator=generator).to(ids.device)
    evaluations = torch.zeros(len(ids), dtype=torch.int64)
    steps = config.steps if config.method in ("tweedie", "euler") else int(hidden.sum(dim=-1).max())
    for rows, revealed in _rounds(step_of, steps, config.cache):
        padding = None if attention_mask is None else attention_mask[rows]
        log_probabilities = diffusion.log_probabilities(ids[rows], revealed, padding)
        drawn = draw_tokens(log_probabilities, chance[rows][revealed], config)
        ids[rows] = ids[rows].masked_scatter(revealed, drawn)
        evaluations[rows.cpu()] += 1
    return Samples(ids, evaluations)


def draw_tokens(log_probabilities: Tensor, chance: Tensor, config: SamplingConfig) -> Tensor:
    """Draw by inverting the distribution function.

    Args:
        log_probabilities: (tokens, vocabulary), normalised or not.
        chance: (tokens,) uniform numbers of [0, 1), float64.
        config: temperature, top_k and top_p.

    Returns:
        (tokens,) ids.
    """
    if config.temperature == 0 or not len(log_probabilities):
        return log_probabilities.argmax(dim=-1)
    probabilities = torch.softmax(log_probabilities.double() / config.temperature, dim=-1)
    if config.top_k:
        least = probabilities.topk(min(config.top_k, probabilities.shape[-1])).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if config.top_p < 1:
        falling, place = probabilities.sort(dim=-1, descending=True, stable=True)
        before = falling.cumsum(dim=-1) - falling
        beyond = before >= config.top_p * falling.sum(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(beyond.gather(-1, place.argsort(dim=-1)), 0.0)
    distribution = probabilities.cumsum(dim=-1)
    drawn = torch.searchsorted(distribution, chance[:, None] * distribution[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=probabilities.shape[-1] - 1)


def _rounds(step_of: Tensor, steps: int, cache: Cache) -> Iterator[tuple[Tensor, Tensor]]:
    """Evaluations in turn: the rows to read, (rows,), and what is revealed in them, (rows, length).

    Sequences do not wait for one another: each goes from one of its own steps that reveal something to the next.
    """
    if cache == "sequence":
        latest = torch.full((len(step_of), 1), -1, device=step_of.device)
        while len(rows := (step_of > latest).any(dim=-1).nonzero()[:, 0]):
            later = step_of.masked_fill(step_of <= latest, torch.iinfo(step_of.dtype).max)
            latest = later.min(dim=-1, keepdim=True).values
            yield rows, (step_of == latest)[rows]
        return
    rows = torch.arange(len(step_of), device=step_of.device)
    for step in range(steps):
        revealed = step_of == step
        if cache == "none" or bool(revealed.any()):
            yield rows, revealed
