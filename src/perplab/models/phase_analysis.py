"""What adapted phases have become, and how much of attention's scores is position."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.mixers.complex import EulerPhase
from perplab.models.parts import rotate


class HeadPhase(NamedTuple):
    """Delta and b of one query head, over its pairs: means and standard deviations."""

    layer: int
    head: int
    delta: float
    delta_deviation: float
    bias: float
    bias_deviation: float


def phases(model: PreTrainedModel) -> list[HeadPhase]:
    """A row for every query head of every layer that has phases, in the order of the model.

    Raises:
        PerplabError: the model has none.
    """
    rows = []
    for layer, phase in enumerate(_phases_of(model)):
        delta = phase.delta.detach().repeat_interleave(phase.num_heads // len(phase.delta), dim=0).double()
        bias = torch.zeros(1) if phase.bias is None else phase.bias.detach()
        bias = bias.expand(phase.num_heads, -1).double()
        rows += [
            HeadPhase(layer, head, *_mean_and_deviation(delta[head]), *_mean_and_deviation(bias[head]))
            for head in range(phase.num_heads)
        ]
    return rows


@torch.no_grad()
def position_share(model: DecoderForCausalLM, input_ids: Tensor) -> Tensor:
    """How much of the variance of a head's scores their distance explains.

    Scores of all pairs of a query and an earlier key are grouped by distance. The share is 1 less the ratio of the
    variance inside groups to the whole, each divided by its degrees of freedom, so that scores without regard to
    position give 0 on average. A query's own key is left out, as it is no recall.

    Args:
        model: a decoder with the mixer `complex`; started at `rope` it is rotary attention.
        input_ids: (batch, length), of 3 tokens or more.

    Returns:
        (layers with phases, heads), at most 1.

    Raises:
        PerplabError: the model is another, or the rows are too short.
    """
    found = _phases_of(model)
    if not isinstance(model, DecoderForCausalLM):
        raise PerplabError("scores are read from this package's decoder", "convert a plain Llama or Qwen3")
    if input_ids.shape[1] < 3:
        raise PerplabError(f"rows of {input_ids.shape[1]} tokens", "give 3 or more, which have several distances")
    turned: list[tuple[Tensor, Tensor]] = []
    hooks = [phase.register_forward_hook(lambda _, __, output: turned.append(output)) for phase in found]
    try:
        model(input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    rotary = model.model.rotary_emb(positions) if hasattr(model.model, "rotary_emb") else None
    return torch.stack([_share(*states, rotary) for states in turned])


def _share(query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    if rotary is not None:
        query, key = rotate(query, rotary), rotate(key, rotary)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query @ key.transpose(-1, -2)).double()
    length = scores.shape[-1]
    later, earlier = torch.tril_indices(length, length, offset=-1, device=scores.device)
    distance = later - earlier - 1
    pairs = scores[:, :, later, earlier].transpose(0, 1)  # (heads, batch, pairs)
    groups, batch = int(distance.max()) + 1, pairs.shape[1]
    sizes = torch.bincount(distance, minlength=groups) * batch
    means = torch.zeros(len(pairs), groups, dtype=pairs.dtype, device=pairs.device)
    means.index_add_(1, distance, pairs.sum(1)).div_(sizes)
    count = batch * len(distance)
    inside = (pairs - means[:, None, distance]).square().sum((1, 2)) / (count - groups)
    whole = pairs.flatten(1).var(dim=1)
    return 1 - inside / whole


def _mean_and_deviation(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=0))


def _phases_of(model: nn.Module) -> list[EulerPhase]:
    found = [module for module in model.modules() if isinstance(module, EulerPhase)]
    if not found:
        raise PerplabError("this model has no phases", "convert it with convert_to_complex first")
    return found
