"""What decay and document borders leave of a state inside a chunk.

A border is a decay to zero, so one set of factors serves both: of what a token reads, of what it writes, and of what
passes through. Where a chunk has neither, factors are None, and nothing is multiplied.
"""

from typing import NamedTuple

from torch import Tensor


class ChunkFactors(NamedTuple):
    """Factors of n chunks of c tokens."""

    pairs: Tensor
    """(n, c, c) or (c, c): what is left of token j's writing when token i reads; zero for j > i."""
    into: Tensor | None
    """(n, c, 1): what is left of the state before the chunk when token i reads; None for all."""
    out: Tensor | None
    """(n, c, 1): what is left of token i's writing after the chunk; None for all."""
    across: Tensor | None
    """(n, 1, 1): what is left of the state before the chunk after it; None for all."""


def chunk_factors(decay: Tensor | None, opens: Tensor | None, causal: Tensor) -> ChunkFactors:
    """Factors of some chunks.

    Args:
        decay: (n, c) finite logarithms of each token's decay, or None.
        opens: (n, c) booleans, true where a token opens a document, or None.
        causal: (c, c) lower triangle of ones, in the dtype of the factors.
    """
    if decay is not None:
        total = decay.to(causal.dtype).cumsum(dim=-1)
    elif opens is not None:
        total = causal.new_zeros(opens.shape)
    else:
        return ChunkFactors(causal, None, None, None)
    visible = causal.bool()
    into, out, across = total, total[:, -1:] - total, total[:, -1:]
    if opens is not None:
        document = opens.cumsum(dim=-1)
        visible = visible & (document[:, :, None] == document[:, None, :])
        into = into.masked_fill(document > 0, float("-inf"))
        out = out.masked_fill(document != document[:, -1:], float("-inf"))
        across = across.masked_fill(document[:, -1:] > 0, float("-inf"))
    pairs = (total[:, :, None] - total[:, None, :]).masked_fill(~visible, float("-inf"))
    return ChunkFactors(pairs.exp(), into.exp()[..., None], out.exp()[..., None], across.exp()[..., None])


def decay_gradient(pairs: Tensor, into: Tensor, out: Tensor, across: Tensor) -> Tensor:
    """Gradient with respect to `decay`, (n, c), from those with respect to the logarithms of the factors.

    Args:
        pairs: (n, c, c).
        into: (n, c).
        out: (n, c).
        across: (n,).
    """
    grad_total = pairs.sum(dim=2) - pairs.sum(dim=1) + into - out
    grad_total[:, -1] += out.sum(dim=1) + across
    return grad_total.flip(1).cumsum(dim=1).flip(1)
