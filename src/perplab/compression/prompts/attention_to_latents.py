"""How much a text attends to latent tokens in front of it, for each of several alternatives.

- Queries and keys are taken where every family hands them over, after positions and norms, in the attention function
  that transformers looks up by name. The model's own attention stays what it was.
- Each alternative is read where it was trained, at the first positions and with no other in sight, so their order does
  not matter. One softmax is then taken over all of them and the text, in which they compete.
- An alternative counts the mean over its tokens, not the sum: being longer is no merit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from perplab.errors import PerplabError
from perplab.models.latent_tokens import LatentCache, read_after

_NAME = "perplab_attention_to_latents"
_QUERIES = 256
"""Tokens whose attention is held at once."""
_layer: ContextVar[int] = ContextVar("layer")


def attention_to_latents(
    model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor, layer: int = 0
) -> Tensor:
    """Mean attention of the text on a token of each row of `cache`.

    Args:
        model: a causal LM whose attention goes through transformers' interface.
        cache: the alternatives, one a row; it stays as it is.
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 for padding.
        layer: whose attention.

    Returns:
        (batch, alternatives) shares of attention, averaged over heads and text; 0 for an alternative without tokens.

    Raises:
        PerplabError: the family computes its attention by itself, or has no such layer.
    """
    check_attention_is_seen(model, layer)
    (batch, length), alternatives = input_ids.shape, len(cache.latent_mask)
    rows = cache.rows(torch.arange(alternatives, device=input_ids.device).repeat(batch))
    ids, mask = (given.repeat_interleave(alternatives, dim=0) for given in (input_ids, attention_mask))
    latents, logits_of = rows.latent_mask.shape[1], _attention_logits(model, rows, ids, mask, layer)
    attended = torch.zeros(batch, alternatives, device=input_ids.device)
    for begin in range(0, length, _QUERIES):
        some = slice(begin, begin + _QUERIES)
        logits = logits_of(some).float()
        logits = logits.view(batch, alternatives, *logits.shape[1:])
        on_latents, on_text = logits[..., :latents].logsumexp(-1), logits[..., latents:].logsumexp(-1)
        everything = torch.logaddexp(on_latents.logsumexp(1, keepdim=True), on_text)
        share = (on_latents - everything).exp().mean(2)  # over heads: (batch, alternatives, queries)
        attended += (share * attention_mask[:, None, some]).sum(-1)
    return attended / attention_mask.sum(-1, keepdim=True) / cache.counts.clamp(min=1)


def check_attention_is_seen(model: PreTrainedModel, layer: int) -> None:
    """Refuse a model or a layer whose attention cannot be read.

    Raises:
        PerplabError: the family computes its attention by itself, or has no such layer.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise PerplabError(
            f"the attention of {model.config.model_type} models cannot be read", "select by likelihood instead"
        )
    if not 0 <= layer < model.config.num_hidden_layers:
        raise PerplabError(
            f"layer {layer} of a model with {model.config.num_hidden_layers}", "count layers from 0 to the last"
        )


def _attention_logits(
    model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor, layer: int
) -> Callable[[slice], Tensor]:
    """From some queries to their (rows, heads, queries, latents + length) logits, masked."""
    with _watching(model, layer):
        try:
            read_after(model, cache, input_ids, attention_mask, use_cache=True)
        except _Reached as reached:
            return reached.logits_of
    raise PerplabError(f"layer {layer} has no attention that can be read", "choose another layer")


class _Reached(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    """The layer's attention logits, as a function of the queries that are wanted."""

    def __init__(self, logits_of: Callable[[slice], Tensor]) -> None:
        self.logits_of = logits_of
        super().__init__()


@contextmanager
def _watching(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Let every attention of the model go through `_attend` while the block runs."""
    before = model.config._attn_implementation
    token = _layer.set(layer)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _layer.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Plain attention, up to the layer that is asked for: (batch, heads, length, head_dim) in, heads third out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def logits_of(some: slice) -> Tensor:
        logits = query[:, :, some] @ key.transpose(-1, -2) * scale
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits if attention_mask is None else logits + attention_mask[:, :, some]

    if module.layer_idx == _layer.get():
        raise _Reached(logits_of)
    return (logits_of(slice(None)).softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, eager_mask)
