"""The delta rule: a state that a token corrects at its key instead of only adding to it (arXiv 2406.06484).

S' = exp(decay_t) S,  u_t = beta_t (v_t - S'^T k_t),  S = S' + k_t u_t^T,  o_t = scale * S^T q_t.

Decisions:
- The state is (key_dim, value_dim), its products float32 or wider whatever the inputs are.
- `position_ids` say where documents begin, as in `attention`: a position of 0 finds the state empty.
- A few tokens take the recurrence, which a generation step is; more take chunks (`chunkwise_state`). Sequences shorter
  than a chunk shrink it.
- With `decay` it is the gated delta rule. Without `beta` it would be linear attention, which has its own function.
- Keys should have unit length or less: the state stays bounded while beta * |k|^2 <= 2.
"""

import torch
from torch import Tensor

from perplab.kernels.chunkwise_state import check_shapes, chunkwise_state, empty_state

RECURRENT = 4
"""Longest input that takes the recurrence."""


def delta_rule_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    position_ids: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, a token at a time: the definition that `delta_rule` is held to.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        value: (batch, heads, length, value_dim).
        beta: (batch, heads, length) strength of each correction, in [0, 2].
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
        q, k, v, b = (states[:, :, token].to(state.dtype) for states in (query, key, value, beta))
        if decay is not None:
            state = state * decay[:, :, token, None, None].to(state.dtype).exp()
        if position_ids is not None:
            state = state * (position_ids[:, token] != 0)[:, None, None, None]
        written = b[..., None] * (v - (k[..., None, :] @ state).squeeze(-2))
        state = state + k[..., :, None] * written[..., None, :]
        outputs.append((q[..., None, :] @ state).squeeze(-2) * scale)
    return torch.stack(outputs, dim=2).to(value.dtype), state


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    position_ids: Tensor | None = None,
    decay: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The delta rule in time linear in the length; arguments and results as for the reference.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        value: (batch, heads, length, value_dim).
        beta: (batch, heads, length).
        scale: factor on what is read.
        initial_state: (batch, heads, key_dim, value_dim).
        position_ids: (batch, length).
        decay: (batch, heads, length).
        chunk_size: tokens that are worked on together; None for what is fastest.

    Raises:
        PerplabError: shapes that do not fit each other, or a chunk without tokens.
    """
    options = {"initial_state": initial_state, "position_ids": position_ids, "decay": decay}
    check_shapes(query, key, value, beta, **options, chunk_size=chunk_size)
    if query.shape[2] <= RECURRENT:
        with torch.autocast(query.device.type, enabled=False):  # the state stays float32
            return delta_rule_reference(query, key, value, beta, scale=scale, **options)
    return chunkwise_state(query, key, value, beta, scale=scale, **options, chunk_size=chunk_size)


def delta_rule_attention_matrix(query: Tensor, key: Tensor, beta: Tensor, *, scale: float | None = None) -> Tensor:
    """What each token's value weighs in each output: `delta_rule` from an empty state is this matrix times the values.

    Weights have signs and their rows do not sum to one.

    Args:
        query: (batch, heads, length, key_dim).
        key: as `query`.
        beta: (batch, heads, length).
        scale: factor on what is read; None for key_dim ** -0.5.

    Returns:
        (batch, heads, length, length), lower triangular.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    corrections = torch.linalg.solve_triangular(
        (beta[..., None] * (key @ key.mT)).tril(-1), torch.diag_embed(beta), upper=False, unitriangular=True
    )
    return scale * (query @ key.mT).tril() @ corrections
