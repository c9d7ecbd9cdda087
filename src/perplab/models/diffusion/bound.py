"""The likelihood of a masked diffusion model: an upper bound on cost over all orders, and the cost in one order.

The bound is the mean over orders of what a sequence costs when its tokens are revealed in that order. By Jensen's
inequality it is at least the cost under the mixture of orders; different orders need not agree.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.losses import Noise, noise, token_costs, uniforms

BATCH_TOKENS = 8192
"""Tokens that go through a network at once."""


@dataclass(frozen=True, eq=False)
class AnyOrderBound:
    """An upper bound on what sequences cost.

    Attributes:
        nats_per_token: the bound.
        standard_error: of that, from the draws of masks.
        token_nats: (batch, length): each token's share, which add up to the bound on a sequence.
    """

    nats_per_token: float
    standard_error: float
    token_nats: Tensor

    @property
    def perplexity(self) -> float:
        """Upper bound on perplexity."""
        return math.exp(self.nats_per_token)


@torch.no_grad()
def ao_bound(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    draws: int,
    generator: torch.Generator,
    *,
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    stratified: bool = True,
    batch_tokens: int = BATCH_TOKENS,
) -> AnyOrderBound:
    """The any-order bound, estimated from some masks of every sequence. Models given one seed meet the same masks.

    Args:
        diffusion: the model, in evaluation mode.
        ids: (batch, length) clean token ids.
        draws: masks a sequence, 2 or more.
        generator: of the CPU.
        loss_mask: (batch, length), true for tokens that cost; the others are given. None for all.
        attention_mask: (batch, length), 0 for padding, which is never hidden.
        stratified: spread the numbers of hidden tokens evenly over the draws of a sequence.
        batch_tokens: tokens that go through the network at once.

    Raises:
        PerplabError: fewer than two draws, nothing to score, or the text holds the mask token.
    """
    if draws < 2:
        raise PerplabError(f"a bound from {draws} draw{'s' * (draws != 1)} of masks", "give 2 or more")
    scored = torch.ones_like(ids, dtype=torch.bool) if loss_mask is None else loss_mask.bool()
    scored = scored if attention_mask is None else scored & attention_mask.bool()
    tokens = int(scored.sum())
    if not tokens:
        raise PerplabError("there is no token to take a bound of", "give at least one token that costs")
    drawn = _masks(diffusion, scored, draws, generator, stratified=stratified)
    copies = ids.repeat_interleave(draws, dim=0)
    padding = None if attention_mask is None else attention_mask.repeat_interleave(draws, dim=0)
    costs = torch.cat(
        [
            token_costs(diffusion, copies[rows], "ao", Noise(*(part[rows] for part in drawn)), _rows(padding, rows))
            for rows in _batches(len(copies), ids, batch_tokens)
        ]
    )
    costs = costs.double().reshape(len(ids), draws, -1)
    # Half the mean square of successive differences: with strata in order it leaves out what lies between them.
    steps = (costs.sum(dim=(0, 2)) / tokens).diff()
    error = math.sqrt(float(steps.square().mean()) / 2 / draws)
    token_nats = costs.mean(dim=1)
    return AnyOrderBound(float(token_nats.sum()) / tokens, error, token_nats)


@torch.no_grad()
def order_nll(diffusion: AbsorbingDiffusion, ids: Tensor, order: Tensor, *, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """What sequences cost when their tokens are revealed one by one.

    Args:
        diffusion: the model, in evaluation mode.
        ids: (batch, length) clean token ids.
        order: (tokens,) the positions to reveal, first to last; those left out are given.
        batch_tokens: tokens that go through the network at once.

    Returns:
        (batch,) nats.
    """
    place = torch.full((ids.shape[1],), -1, device=ids.device)
    place[order] = torch.arange(len(order), device=ids.device)
    step = torch.arange(len(order), device=ids.device)[:, None]
    hidden, revealed = place >= step, place == step
    costs = []
    for sequence in ids:
        diffusion.refuse_mask_in(sequence)
        cost = torch.zeros((), dtype=torch.float64, device=ids.device)
        for steps in _batches(len(order), ids, batch_tokens):
            noised = sequence.repeat(len(steps), 1).masked_fill(hidden[steps], diffusion.mask_token_id)
            log_probabilities = diffusion.log_probabilities(noised, revealed[steps])
            cost -= log_probabilities.gather(-1, sequence[order[steps]][:, None]).sum().double()
        costs.append(cost)
    return torch.stack(costs)


def _masks(
    diffusion: AbsorbingDiffusion, scored: Tensor, draws: int, generator: torch.Generator, *, stratified: bool
) -> Noise:
    """Masks of every sequence, sequence after sequence; stratified ones by growing amount."""
    batch = len(scored)
    uniform = uniforms(batch * draws, "iid", generator)
    if stratified:
        uniform = (uniform + torch.arange(draws).repeat(batch)) / draws
    return noise("ao", uniform, scored.repeat_interleave(draws, dim=0), diffusion.schedule, generator)


def _batches(rows: int, ids: Tensor, batch_tokens: int) -> tuple[Tensor, ...]:
    """Numbers of so many rows, each as long as those of `ids`, in batches of about `batch_tokens`."""
    return torch.split(torch.arange(rows, device=ids.device), max(1, batch_tokens // ids.shape[1]))


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
