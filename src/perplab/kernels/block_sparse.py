"""Attention over the kept blocks of a layout alone.

Decisions:
- Query blocks that keep equally many key blocks go together: their keys are gathered side by side, and two batched
  matrix products and a softmax do the rest. Time follows the number of kept blocks, and what is empty is skipped.
- A bounded number of query blocks is taken at a time, and the backward pass gathers and scores again: memory is linear
  in length.
- A query without a kept block has output 0 and gradient 0.
- Inside a kept block only two things hide keys: causality on the diagonal, and the filling of a short last block.
- On CUDA the same layout is handed to torch's `flex_attention`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.block_layout import BlockLayout
from perplab.kernels.key_value_heads import shared_out

GATHERED = 2**20
"""Numbers gathered or scored at a time: 4 MiB in float32. Fewer are slower: each piece costs some twenty calls."""


def block_sparse_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention with the layout as a whole mask: the definition of `block_sparse_attention`.

    Args:
        query: (batch, heads, length, head_dim).
        key: (batch, key_value_heads, length, head_dim); `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        layout: of this length, one for all heads or one a head.
        causal: whether a query sees no key after it.
        scale: factor on the scores; None for head_dim ** -0.5.

    Returns:
        (batch, heads, length, head_dim), in the dtype of `query`; 0 for queries that see nothing.

    Raises:
        PerplabError: the layout is for another length or number of heads, or the heads do not belong together.
    """
    _check_layout(query, key, layout)
    key, value = shared_out(query, key, value)
    visible = layout.to_dense(causal=causal).to(query.device)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
    return weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0) @ value


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention over the kept blocks of `layout`; arguments as for the reference."""
    _check_layout(query, key, layout)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.device.type == "cuda":
        return _flex(query, key, value, layout, causal, scale)
    key, value = shared_out(query, key, value)
    output: Tensor = _BlockSparse.apply(query, key, value, layout, causal, scale)  # type: ignore[no-untyped-call]
    return output


def _check_layout(query: Tensor, key: Tensor, layout: BlockLayout) -> None:
    if query.shape[2] != layout.length or key.shape[2] != layout.length:
        raise PerplabError(
            f"the layout is for {layout.length} tokens, and there are {query.shape[2]} queries and {key.shape[2]} keys",
            "make the layout for this length",
        )
    if layout.kept.shape[0] not in (1, query.shape[1]):
        raise PerplabError(
            f"the layout has {layout.kept.shape[0]} heads and the queries {query.shape[1]}",
            "give one pattern for all heads or one a head",
        )


def _flex(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, causal: bool, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention)
    mask = layout.to_block_mask(causal=causal, device=query.device)
    output: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return output


class _Piece(NamedTuple):
    """Query blocks that keep equally many key blocks. Blocks are numbered through the heads.

    Attributes:
        queries: (pieces,) numbers of query blocks.
        keys: (pieces, kept) numbers of key blocks.
        hidden: (pieces, block, kept * block), -inf where a query may not see a key and 0 elsewhere; None where all is
            seen.
    """

    queries: Tensor
    keys: Tensor
    hidden: Tensor | None


class _BlockSparse(torch.autograd.Function):
    """Gathered keys, two products and a softmax, forward; the same again and three more products, backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, causal: bool, scale: float
    ) -> Tensor:
        queries, keys, values = (_in_blocks(states, layout) for states in (query, key, value))
        mixed = torch.zeros_like(queries)
        for piece in _pieces(layout, causal, query):
            weights = _weights(queries, keys, piece, scale)
            mixed[:, piece.queries] = _times(weights, _gathered(values, piece))
        ctx.save_for_backward(query, key, value)
        ctx.how = layout, causal, scale
        return _in_sequence(mixed, query)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        layout, causal, scale = ctx.how
        queries, keys, values, upstream = (_in_blocks(states, layout) for states in (query, key, value, grad_output))
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_queries = torch.zeros_like(queries)
        grad_keys, grad_values = (torch.zeros_like(states, dtype=wide) for states in (keys, values))
        for piece in _pieces(layout, causal, query):
            weights, grad_mixed = _weights(queries, keys, piece, scale), upstream[:, piece.queries]
            grad_weights = _times(grad_mixed, _gathered(values, piece).mT)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype) * scale
            grad_queries[:, piece.queries] = _times(grad_scores, _gathered(keys, piece))
            _scatter(grad_keys, piece, _times(grad_scores.mT, queries[:, piece.queries]))
            _scatter(grad_values, piece, _times(weights.mT, grad_mixed))
        grads = [_in_sequence(grad.to(query.dtype), query) for grad in (grad_queries, grad_keys, grad_values)]
        return *grads, None, None, None


def _weights(queries: Tensor, keys: Tensor, piece: _Piece, scale: float) -> Tensor:
    """Attention weights of a piece, (batch, pieces, block, kept * block)."""
    scores = _times(queries[:, piece.queries] * scale, _gathered(keys, piece).mT)
    if piece.hidden is not None:
        scores += piece.hidden
    return torch.softmax(scores, dim=-1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products over the last two of four axes."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).view(*left.shape[:3], right.shape[3])


def _in_blocks(states: Tensor, layout: BlockLayout) -> Tensor:
    """(batch, heads, length, head_dim) as (batch, heads * blocks, block, head_dim), the last block filled up with 0."""
    short = layout.kept.shape[-1] * layout.block - layout.length
    padded = F.pad(states, (0, 0, 0, short)) if short else states
    return padded.reshape(len(states), -1, layout.block, states.shape[3])


def _in_sequence(blocks: Tensor, like: Tensor) -> Tensor:
    """The way back from `_in_blocks`."""
    return blocks.view(*like.shape[:2], -1, like.shape[3])[:, :, : like.shape[2]]


def _gathered(blocks: Tensor, piece: _Piece) -> Tensor:
    """The piece's key blocks side by side, (batch, pieces, kept * block, head_dim)."""
    chosen = blocks.index_select(1, piece.keys.flatten())
    return chosen.view(len(blocks), len(piece.keys), -1, blocks.shape[3])


def _scatter(blocks: Tensor, piece: _Piece, gathered: Tensor) -> None:
    """Add what belongs to gathered key blocks to the blocks."""
    pieces = gathered.to(blocks.dtype).view(len(blocks), -1, *blocks.shape[2:])
    blocks.index_add_(1, piece.keys.flatten(), pieces)


def _pieces(layout: BlockLayout, causal: bool, query: Tensor) -> Iterator[_Piece]:
    """The work, cut into pieces of bounded size."""
    kept = layout.kept.tril() if causal else layout.kept
    blocks, block = kept.shape[-1], layout.block
    kept = kept.expand(query.shape[1], -1, -1).flatten(0, 1)  # a row for each query block of each head
    counts = kept.sum(dim=-1)
    for count in sorted(set(counts.tolist())):
        if count == 0:
            continue
        rows = (counts == count).nonzero().flatten()
        columns = kept[rows].nonzero()[:, 1].view(len(rows), count)
        numbers = query.shape[0] * count * block * (block + 2 * query.shape[-1])
        at_once = max(1, GATHERED // numbers)
        for some, keys in zip(torch.split(rows, at_once), torch.split(columns, at_once), strict=True):
            numbered = keys + (some // blocks * blocks)[:, None]
            yield _Piece(some, numbered, _hidden(layout, some % blocks, keys, causal, query.dtype))


def _hidden(layout: BlockLayout, rows: Tensor, keys: Tensor, causal: bool, dtype: torch.dtype) -> Tensor | None:
    """What kept blocks still hide: keys after the query, and the filling of a short last block."""
    inside = torch.arange(layout.block)
    key_places = (keys[:, :, None] * layout.block + inside).flatten(1)[:, None, :]
    if causal:
        hides = (keys[:, -1] == rows).any()
        hidden = key_places > (rows[:, None] * layout.block + inside)[:, :, None]
    else:
        hides = key_places[:, 0, -1].max() >= layout.length
        hidden = (key_places >= layout.length).expand(-1, layout.block, -1)
    if not hides:
        return None
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
