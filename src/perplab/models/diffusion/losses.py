"""Four losses of masked diffusion, each an estimate of one upper bound on what a sequence costs.

Decisions:
- A loss is two things: what it hides (`noise`), and what a hidden token costs, which is its cross-entropy times a
  weight that the amount hidden decides. A sequence costs the sum over its hidden tokens.
- `ao` hides exactly k of d tokens, k uniform, at weight d / k; `lambda-dce` each with probability lambda, uniform, at
  weight 1 / lambda; `t-dce` each with lambda(t), t uniform, at weight rate * alpha / (1 - alpha). `dse` is the entropy
  of the concrete score at the same noise: equal to `t-dce` term by term, because the network is normalised.
- One draw of `lambda-dce` has no finite variance; `ao` has the least, and never hides nothing.
- Times lie in [0.001, 1], as is usual; that biases the losses in time by a thousandth. A term of `t-dce` that does not
  depend on the network, and has mean zero, is left out.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.schedules import Schedule

LossName = Literal["ao", "lambda-dce", "t-dce", "dse"]
Sampler = Literal["iid", "vdm", "stratified"]
"""How the amounts of noise in a batch are drawn: each by itself; one draw and its translates round the unit interval;
or one from each of equal parts of it, dealt to the rows in random order."""

FIRST_TIME = 1e-3


class Noise(NamedTuple):
    """What is hidden in a batch."""

    hidden: Tensor
    """(batch, length) booleans."""
    amount: Tensor
    """(batch,) float64: k / d for `ao`, the mask rate for `lambda-dce`, the time for `t-dce` and `dse`."""


def uniforms(count: int, sampler: Sampler, generator: torch.Generator) -> Tensor:
    """`count` numbers of [0, 1), each uniform, in float64."""
    if sampler not in get_args(Sampler):
        raise PerplabError(f"unknown sampler {sampler!r}", f"choose from {', '.join(get_args(Sampler))}")
    if sampler == "vdm":
        first = torch.rand(1, dtype=torch.float64, generator=generator)
        return (first + torch.arange(count, dtype=torch.float64) / count) % 1.0
    drawn = torch.rand(count, dtype=torch.float64, generator=generator)
    if sampler == "iid":
        return drawn
    return (drawn + torch.randperm(count, generator=generator)) / count


def noise(loss: LossName, uniform: Tensor, scored: Tensor, schedule: Schedule, generator: torch.Generator) -> Noise:
    """Choose what to hide.

    Args:
        loss: whose noise.
        uniform: (batch,) of [0, 1), on the CPU: decides how much.
        scored: (batch, length) booleans: what may be hidden.
        schedule: mask rates in time.
        generator: of the CPU; decides where.
    """
    place = torch.rand(scored.shape, dtype=torch.float64, generator=generator).to(scored.device)
    uniform = uniform.to(scored.device)
    if loss == "ao":
        tokens = scored.sum(dim=-1)
        hidden_tokens = torch.clamp((uniform * tokens).floor() + 1, max=tokens)
        rank = place.masked_fill(~scored, 2.0).argsort(dim=-1).argsort(dim=-1)
        return Noise((rank < hidden_tokens[:, None]) & scored, hidden_tokens / tokens)
    if loss == "lambda-dce":
        amount = rate = 1.0 - uniform
    else:
        amount = FIRST_TIME + (1 - FIRST_TIME) * uniform
        rate = 1.0 - schedule.alpha(amount)
    return Noise((place < rate[:, None]) & scored, amount)


def token_costs(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss: LossName,
    drawn: Noise,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """What each token costs under this noise, weighted: (batch, length) nats, 0 where nothing is hidden.

    Raises:
        PerplabError: the text holds the mask token, or there is no such loss.
    """
    if loss not in _COSTS:
        raise PerplabError(f"unknown loss {loss!r}", f"choose from {', '.join(_COSTS)}")
    diffusion.refuse_mask_in(ids[drawn.hidden])
    noised = ids.masked_fill(drawn.hidden, diffusion.mask_token_id)
    log_probabilities = diffusion.log_probabilities(noised, drawn.hidden, attention_mask, position_ids)
    amount = drawn.amount[:, None].expand(ids.shape)[drawn.hidden]
    costs = _COSTS[loss](log_probabilities, ids[drawn.hidden], amount, diffusion.schedule)
    return torch.zeros(ids.shape, dtype=costs.dtype, device=costs.device).masked_scatter(drawn.hidden, costs)


def ao(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss_mask: Tensor | None,
    generator: torch.Generator,
    *,
    sampler: Sampler = "iid",
) -> Tensor:
    """One draw of the any-order loss.

    Args:
        diffusion: the model.
        ids: (batch, length) clean token ids.
        loss_mask: (batch, length), true for tokens that cost; the others are given. None for all.
        generator: of the CPU.
        sampler: of the amounts hidden.

    Returns:
        (batch,) nats a sequence.

    Raises:
        PerplabError: the text holds the mask token, or there is no such sampler.
    """
    return _drawn_once("ao", diffusion, ids, loss_mask, generator, sampler)


def lambda_dce(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss_mask: Tensor | None,
    generator: torch.Generator,
    *,
    sampler: Sampler = "iid",
) -> Tensor:
    """One draw of the denoising loss over mask rates; as `ao`."""
    return _drawn_once("lambda-dce", diffusion, ids, loss_mask, generator, sampler)


def t_dce(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss_mask: Tensor | None,
    generator: torch.Generator,
    *,
    sampler: Sampler = "iid",
) -> Tensor:
    """One draw of the denoising loss over times; as `ao`."""
    return _drawn_once("t-dce", diffusion, ids, loss_mask, generator, sampler)


def dse(
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss_mask: Tensor | None,
    generator: torch.Generator,
    *,
    sampler: Sampler = "iid",
) -> Tensor:
    """One draw of the denoising score entropy; as `ao`."""
    return _drawn_once("dse", diffusion, ids, loss_mask, generator, sampler)


def _drawn_once(
    loss: LossName,
    diffusion: AbsorbingDiffusion,
    ids: Tensor,
    loss_mask: Tensor | None,
    generator: torch.Generator,
    sampler: Sampler,
) -> Tensor:
    scored = torch.ones_like(ids, dtype=torch.bool) if loss_mask is None else loss_mask.bool()
    drawn = noise(loss, uniforms(len(ids), sampler, generator), scored, diffusion.schedule, generator)
    return token_costs(diffusion, ids, loss, drawn).sum(dim=-1)


def score_entropy(log_scores: Tensor, targets: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Score entropy of hidden tokens.

    Args:
        log_scores: (tokens, vocabulary), logarithms of the concrete score's estimate.
        targets: (tokens,) what is hidden.
        t: (tokens,) the time.
        schedule: mask rates in time.

    Returns:
        (tokens,) nats.
    """
    ratio = _score_ratio(t, schedule)
    target_log_score = log_scores.gather(-1, targets[:, None])[:, 0]
    excess = log_scores.exp().sum(dim=-1) - ratio * target_log_score + ratio * (ratio.log() - 1)
    return schedule.rate(t) * excess


def _score_ratio(t: Tensor, schedule: Schedule) -> Tensor:
    alpha = schedule.alpha(t)
    return alpha / (1 - alpha)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets[:, None])[:, 0]


def _by_amount(log_probabilities: Tensor, targets: Tensor, amount: Tensor, _: Schedule) -> Tensor:
    return _cross_entropy(log_probabilities, targets) / amount


def _by_time(log_probabilities: Tensor, targets: Tensor, amount: Tensor, schedule: Schedule) -> Tensor:
    return schedule.rate(amount) * _score_ratio(amount, schedule) * _cross_entropy(log_probabilities, targets)


def _by_score(log_probabilities: Tensor, targets: Tensor, amount: Tensor, schedule: Schedule) -> Tensor:
    log_scores = log_probabilities + _score_ratio(amount, schedule).log()[:, None]
    return score_entropy(log_scores, targets, amount, schedule)


_COSTS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Schedule], Tensor]] = {
    "ao": _by_amount,
    "lambda-dce": _by_amount,
    "t-dce": _by_time,
    "dse": _by_score,
}
