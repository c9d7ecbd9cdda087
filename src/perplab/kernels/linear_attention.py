"""Linear attention: a state that every token adds to, and that may decay (arXiv 2006.16236, 2307.08621).

S = exp(decay_t) S' + k_t v_t^T,  o_t = scale * S^T q_t, where S' is the state before. There is no normaliser.

Decisions:
- One logarithm of a decay for each token and head. A constant for each head is RetNet's retention, none is plain linear
  attention.
- The computation is that of `delta_rule` without its correction; what is said there of states, documents and chunks
  holds here.
"""

import torch
from torch import Tensor

from perplab.kernels.chunkwise_state import check_shapes, chunkwise_state, empty_state

RECURRENT = 4
"""Longest input that takes the recurrence."""


def linear_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    position_ids: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, a token at a time: the definition that `linear_attention` is held to.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        value: (batch, heads, length, value_dim).
        scale: factor on what is read; None for key_dim ** -0.5.
        initial_state: (batch, heads, key_dim, value_dim) from tokens before; None for zeros.
        position_ids: (batch, length); 0 opens a document. None: one document a row.
        decay: (batch, heads, length) finite logarithms of each token's decay of the state, at most 0; None for none.

    Returns:
        The output (batch, heads, length, value_dim), in the dtype of `value`, and the final state, float32 or wider.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    state = empty_state(query, value) if initial_state is None else initial_state
    outputs = []
    for token in range(query.shape[2]):
        q, k, v = (states[:, :, token].to(state.dtype) for states in (query, key, value))
        if decay is not None:
            state = state * decay[:, :, token, None, None].to(state.dtype).exp()
        if position_ids is not None:
            state = state * (position_ids[:, token] != 0)[:, None, None, None]
        state = state + k[..., :, None] * v[..., None, :]
        outputs.append((q[..., None, :] @ state).squeeze(-2) * scale)
    return torch.stack(outputs, dim=2).to(value.dtype), state


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    position_ids: Tensor | None = None,
    decay: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention by chunks; arguments and results as for the reference.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        value: (batch, heads, length, value_dim).
        scale: factor on what is read.
        initial_state: (batch, heads, key_dim, value_dim).
        position_ids: (batch, length).
        decay: (batch, heads, length).
        chunk_size: tokens that are worked on together; None for what is fastest.

    Raises:
        PerplabError: shapes that do not fit each other, or a chunk without tokens.
    """
    options = {"initial_state": initial_state, "position_ids": position_ids, "decay": decay}
    check_shapes(query, key, value, None, **options, chunk_size=chunk_size)
    if query.shape[2] <= RECURRENT:
        with torch.autocast(query.device.type, enabled=False):  # the state stays float32
            return linear_attention_reference(query, key, value, scale=scale, **options)
    return chunkwise_state(query, key, value, None, scale=scale, **options, chunk_size=chunk_size)
