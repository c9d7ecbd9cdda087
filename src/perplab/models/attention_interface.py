"""perplab's attention in any model of transformers: `attn_implementation="perplab"`, and block-sparse layouts.

Decisions:
- transformers hands every attention of a model to a function registered by name, and asks a second function of that
  name for the mask. Ours makes no mask where a sequence is read whole and nothing is padded: then attention is causal,
  and `packed_attention` serves it, with the sliding window and soft cap of the layer. Everything else (padding, a
  cache, documents packed by position) is one masked call.
- A layer's sliding window needs no mask either, because families that have one hand it to the attention function too.
- `sparse_attention` lets a model see the kept blocks of a layout alone while a block of code runs. Sequences read whole
  skip what is not kept; with padding or a cache the layout is joined to the mask. Blocks are counted from the first
  column of a row, padding included.
- What would be left out in silence (weights to return, a position bias, attention sinks) is refused.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from perplab.errors import PerplabError
from perplab.kernels import BlockLayout, block_sparse_attention, packed_attention
from perplab.kernels.attention import packed_mask
from perplab.kernels.key_value_heads import shared_out

NAME = "perplab"
"""What to pass as `attn_implementation`."""

LayoutRule = Callable[[int], BlockLayout]
"""From the length of a sequence to the layout of its attention."""

_SERVED_ELSEWHERE = ("output_attentions", "position_bias", "s_aux")
_rule: ContextVar[LayoutRule | None] = ContextVar("rule", default=None)


@contextmanager
def sparse_attention(model: PreTrainedModel, rule: LayoutRule) -> Iterator[None]:
    """Let every attention of `model` see only the kept blocks of a layout while the block runs.

    Args:
        model: a causal model whose attention goes through transformers' interface.
        rule: gives the layout for a length, for example `lambda length: BlockLayout.local(length, 64, 4)`.

    Raises:
        PerplabError: the model's attention cannot be exchanged.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise PerplabError(
            f"the attention of {model.config.model_type} cannot be exchanged",
            "use a model whose attention goes through transformers' interface, such as llama or gpt2",
        )
    before = model.config._attn_implementation
    token = _rule.set(functools.cache(rule))
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _rule.reset(token)


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    *,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    config: Any = None,
    **options: Any,
) -> Tensor | None:
    """(batch, 1, queries, keys) booleans, true where a query may look; None for whole sequences without padding."""
    is_whole = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    is_window = local_size == getattr(config, "sliding_window", None)  # a chunk has a size too, and nobody passes it on
    mask: Tensor | None = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        local_size=None if is_window else local_size,
        allow_is_causal_skip=allow_is_causal_skip and is_whole,
        **options,
    )
    return mask


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: (batch, heads, queries, head_dim) in, (batch, queries, heads, head_dim) out."""
    _refuse_what_is_not_served(module, options)
    length = query.shape[2]
    rule = _rule.get()
    if attention_mask is None:
        if key.shape[2] != length:
            raise PerplabError(
                f"{length} queries meet {key.shape[2]} keys without a mask", "give the attention an explicit mask"
            )
        is_windowed = sliding_window is not None and sliding_window < length
        if rule is None and not dropout:
            position_ids = torch.arange(length, device=query.device).expand(query.shape[0], -1)
            mixed = packed_attention(
                query, key, value, position_ids, scale=scaling, sliding_window=sliding_window, soft_cap=softcap
            )
            return mixed.transpose(1, 2).contiguous(), None
        if rule is not None and not (dropout or is_windowed or softcap):
            mixed = block_sparse_attention(query, key, value, rule(length), scale=scaling)
            return mixed.transpose(1, 2).contiguous(), None
        attention_mask = packed_mask(torch.arange(length, device=query.device)[None], sliding_window)
    if rule is not None:
        if sliding_window is not None and key.shape[2] != length:
            raise PerplabError(
                "a layer with a sliding window forgets where its cached keys stood",
                "pass use_cache=False to use a sparse layout",
            )
        attention_mask = _joined(attention_mask, rule(key.shape[2]), length)
    mixed = _masked_attention(query, key, value, attention_mask, scaling, softcap, dropout)
    return mixed.transpose(1, 2).contiguous(), None


def _refuse_what_is_not_served(module: nn.Module, options: dict[str, Any]) -> None:
    for name in _SERVED_ELSEWHERE:
        if options.get(name) is not None and options[name] is not False:
            raise PerplabError(f"attn_implementation {NAME!r} does not serve {name}", "use eager for this call")
    if not getattr(module, "is_causal", True):
        raise PerplabError(
            f"attn_implementation {NAME!r} is causal and {type(module).__name__} is not", "use sdpa for this model"
        )


def _joined(mask: Tensor, layout: BlockLayout, queries: int) -> Tensor:
    """The mask of the last `queries` tokens, with what the layout does not keep hidden."""
    places = torch.arange(layout.length - queries, layout.length) // layout.block
    kept = layout.kept[:, places].repeat_interleave(layout.block, dim=2)[:, :, : layout.length].to(mask.device)
    if mask.dtype == torch.bool:
        return mask & kept
    return mask.masked_fill(~kept, float("-inf"))


def _masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float | None,
    soft_cap: float | None,
    dropout: float,
) -> Tensor:
    """Attention under a mask of booleans or of what is added to scores; rows that see nothing give 0."""
    key, value = shared_out(query, key, value)
    if soft_cap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / soft_cap) * soft_cap
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    hidden = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(hidden, 0.0), dim=-1).masked_fill(hidden, 0.0)
    return F.dropout(weights, dropout).to(query.dtype) @ value


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
