"""Causal attention over a row of token segments that form trees: independent sequences side by side, shared beginnings.

Decisions:
- A row holds segments. A segment opens a sequence or continues an earlier segment, its parent, and a token sees the
  segments on the way back to the root and what stands before it in its own. Documents packed into one row are trees of
  one segment; four answers to one question are four children of the question, which is computed once.
- Nothing is computed across sequences. Each segment meets its ancestors' keys and its own; a segment that opens a
  sequence takes the causal kernel of `attention.py`.
- Short sibling segments that no segment continues go through one masked product together, because a call costs more
  than the scores it saves.
- Masks depend on the row, not on the layer, and are kept with the row.
- It serves forward passes alone: no gradient flows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from perplab.kernels.attention import causal_attention

TOGETHER = 128
"""Tokens of short siblings that meet their keys in one product."""

QUERY_BLOCK = 512
"""Queries whose capped scores exist at a time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `start` to `end` of a row, which continue segment number `parent` of the row, or open a sequence at -1."""

    start: int
    end: int
    parent: int = -1


@dataclass(frozen=True, slots=True)
class _Span:
    """Queries that meet their keys in one product: a segment, or short siblings next to each other.

    Attributes:
        start: first query.
        end: after the last.
        ancestors: runs of keys from the root to the parent, in order.
        depth: position of the first token of every segment of the span, which is the number of ancestor keys.
        borders: where the span's segments begin.
    """

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]
    depth: int
    borders: tuple[int, ...]


@dataclass(eq=False)
class SegmentTree:
    """The segments of a row: they cover it in order, and every parent stands before its children.

    Attributes:
        position_ids: (tokens,) position of each token in its sequence.
    """

    segments: Sequence[Segment]
    position_ids: Tensor = field(init=False)
    _spans: list[_Span] = field(init=False)
    _masks: dict[tuple[_Span, int | None, torch.device], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Find positions and the products to take."""
        depths: list[int] = []
        for segment in self.segments:
            parent = self.segments[segment.parent] if segment.parent >= 0 else None
            depths.append(depths[segment.parent] + parent.end - parent.start if parent else 0)
        self.position_ids = torch.cat(
            [
                torch.arange(depth, depth + segment.end - segment.start)
                for segment, depth in zip(self.segments, depths, strict=True)
            ]
        )
        self._spans = list(self._find_spans(depths))

    def visible(self, sliding_window: int | None = None) -> Tensor:
        """Which key each query may see, (tokens, tokens) booleans: the definition."""
        owner = torch.cat([torch.full((s.end - s.start,), index) for index, s in enumerate(self.segments)])
        on_the_way = torch.eye(len(self.segments), dtype=torch.bool)
        for index, segment in enumerate(self.segments):
            if segment.parent >= 0:
                on_the_way[index] |= on_the_way[segment.parent]
        seen = on_the_way[owner][:, owner]
        return seen & _reaches(self.position_ids, self.position_ids, sliding_window)

    def _find_spans(self, depths: Sequence[int]) -> Iterator[_Span]:
        parents = {segment.parent for segment in self.segments}
        together: list[int] = []
        for index, segment in enumerate(self.segments):
            is_short_leaf = index not in parents and segment.end - segment.start <= TOGETHER // 2
            fits = together and (
                segment.parent == self.segments[together[0]].parent
                and segment.end - self.segments[together[0]].start <= TOGETHER
            )
            if together and not (is_short_leaf and fits):
                yield self._span(together, depths)
                together = []
            together.append(index)
            if not is_short_leaf:
                yield self._span(together, depths)
                together = []
        if together:
            yield self._span(together, depths)

    def _span(self, indices: Sequence[int], depths: Sequence[int]) -> _Span:
        first, last = self.segments[indices[0]], self.segments[indices[-1]]
        ancestors: list[tuple[int, int]] = []
        parent = first.parent
        while parent >= 0:
            segment = self.segments[parent]
            ancestors.append((segment.start, segment.end))
            parent = segment.parent
        borders = tuple(self.segments[index].start for index in indices)
        return _Span(first.start, last.end, tuple(reversed(ancestors)), depths[indices[0]], borders)

    def spans(self) -> Sequence[_Span]:
        """The products to take, in the order of their queries, which they cover."""
        return self._spans

    def mask(self, span: _Span, sliding_window: int | None, device: torch.device) -> Tensor:
        """Which of its keys each query of a span may see: (queries, ancestors' tokens + queries) booleans."""
        key = (span, sliding_window, device)
        if key not in self._masks:
            positions = self.position_ids[span.start : span.end]
            reached = _reaches(positions, torch.cat((torch.arange(span.depth), positions)), sliding_window)
            owner = torch.bucketize(torch.arange(span.start, span.end), torch.tensor(span.borders), right=True)
            reached[:, span.depth :] &= owner[:, None] == owner[None, :]
            self._masks[key] = reached.to(device)
        return self._masks[key]


def segment_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: SegmentTree,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Softmax attention with the row's whole mask: the definition that `segment_attention` is held to.

    Args:
        query: (1, heads, tokens, head_dim).
        key: (1, key_value_heads, tokens, head_dim); `heads` is a multiple of `key_value_heads`.
        value: as `key`.
        tree: of the row.
        scale: factor on the scores; None for head_dim ** -0.5.
        soft_cap: c in c * tanh(scores / c), applied to scaled scores; None for none.
        sliding_window: how many tokens a token sees, itself among them; None for all.

    Returns:
        (1, heads, tokens, head_dim), in the dtype of `query`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return _explicit(query, key, value, tree.visible(sliding_window).to(query.device), scale, soft_cap)


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: SegmentTree,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention inside each sequence of a row of segments; arguments as for the reference."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    # Laid out (tokens, heads, head_dim), which is how the projection after it reads it.
    output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    for span in tree.spans():
        own = slice(span.start, span.end)
        runs = [*(slice(start, end) for start, end in span.ancestors), own]
        keys, values = (_along(states, runs) for states in (key, value))
        output[:, :, own] = _span_attention(query[:, :, own], keys, values, tree, span, scale, soft_cap, sliding_window)
    return output


def _span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: SegmentTree,
    span: _Span,
    scale: float | None,
    soft_cap: float | None,
    sliding_window: int | None,
) -> Tensor:
    if sliding_window is not None and key.shape[2] <= sliding_window:
        sliding_window = None
    if soft_cap is not None:
        mask = tree.mask(span, sliding_window, query.device)
        blocks = [
            _explicit(queries, key, value, seen, scale, soft_cap)
            for queries, seen in zip(
                torch.split(query, QUERY_BLOCK, dim=2), torch.split(mask, QUERY_BLOCK), strict=True
            )
        ]
        return torch.cat(blocks, dim=2)
    if sliding_window is None and not span.ancestors and len(span.borders) == 1:
        return causal_attention(query, key, value, scale=scale)
    mask = tree.mask(span, sliding_window, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _explicit(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None, soft_cap: float | None
) -> Tensor:
    """Attention with its scores written out, in float32 where the states are narrower."""
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
    return weights.to(query.dtype) @ value


def _along(states: Tensor, runs: Sequence[slice]) -> Tensor:
    """The tokens of some runs, one after another."""
    pieces = [states[:, :, run] for run in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _reaches(queries: Tensor, keys: Tensor, sliding_window: int | None) -> Tensor:
    """Whether each key's position is at or before each query's, and within its window."""
    distance = queries[:, None] - keys[None, :]
    return distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)
