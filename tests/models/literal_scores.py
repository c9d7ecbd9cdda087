"""The scores of complex attention, written as the formula says: an oracle for small inputs."""

import torch


def literal_scores(query, key, delta, bias, positions, *, theta=10_000.0, scale=None):
    """The paper's scores, one tensor (batch, heads, queries, keys, pairs) of phase differences.

    `query` (batch, heads, length, head_dim), `key` with fewer heads, delta and bias (heads, pairs), `positions`
    (length,); only the first 2 * pairs components are pairs, the rest multiply as they are.
    """
    pairs = delta.shape[-1]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    (a, b), (c, d) = ((states[..., :pairs], states[..., pairs : 2 * pairs]) for states in (query, key))
    magnitude = torch.hypot(a, b)[:, :, :, None] * torch.hypot(c, d)[:, :, None]
    semantic = torch.atan2(b, a)[:, :, :, None] - torch.atan2(d, c)[:, :, None]
    frequency = theta ** (-torch.arange(pairs, dtype=query.dtype) / pairs)
    distance = (positions[:, None] - positions[None, :])[..., None] * frequency
    angle = delta[:, None, None] * semantic + bias[:, None, None] + distance
    scores = (magnitude * angle.cos()).sum(-1)
    scores = scores + query[..., 2 * pairs :] @ key[..., 2 * pairs :].transpose(-1, -2)
    return scores * (query.shape[-1] ** -0.5 if scale is None else scale)
