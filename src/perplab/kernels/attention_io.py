"""What an attention algorithm moves between slow and fast memory, counted exactly, and how long that has to take.

Counts are for the forward pass of one head: elements read from and written to slow memory while fast memory holds one
tile of each operand. `standard` writes scores and weights out; `flash1` keeps keys in fast memory and brings queries
and outputs by for each of their tiles; `flash2` keeps queries and brings keys by. With N tokens, d numbers a head, T_q
and T_k tiles of queries and keys:

- standard: 4 N d + 4 N²  (read Q, K; write S; read S; write P; read P, V; write O)
- flash1: 2 N d + T_k (3 N d + 4 N)  (K and V once; for each of their tiles read Q, O, m, l and write O, m, l)
- flash2: 2 N d + N + 2 N d T_q  (Q, O and the logsumexp once; K and V for each tile of queries)

With `causal` or a layout, tiles that hold nothing visible are neither read nor computed.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.kernels.block_layout import BlockLayout

Algorithm = Literal["standard", "flash1", "flash2"]
BACKWARD_PRODUCTS = 2.5
"""Five matrix products, with the scores computed again, against two."""


@dataclass(frozen=True)
class AttentionCost:
    """Cost of one head's forward pass.

    Attributes:
        elements: moved between slow and fast memory.
        flops: multiplications and additions of the two matrix products.
    """

    elements: int
    flops: int

    def seconds(self, *, bandwidth: float, flops_per_second: float, element_bytes: int = 2) -> float:
        """The roofline's time: that of the slower of moving and computing.

        Args:
            bandwidth: bytes a second between slow and fast memory.
            flops_per_second: of the matrix unit.
            element_bytes: size of an element.
        """
        return max(self.elements * element_bytes / bandwidth, self.flops / flops_per_second)

    @property
    def backward_flops(self) -> float:
        """Of the backward pass that computes the scores again."""
        return BACKWARD_PRODUCTS * self.flops


def attention_io(
    length: int,
    head_dim: int,
    algorithm: Algorithm,
    *,
    fast_memory: int | None = None,
    block_q: int = 128,
    block_k: int = 64,
    causal: bool = False,
    layout: BlockLayout | None = None,
) -> AttentionCost:
    """Exact counts for one head.

    Args:
        length: tokens.
        head_dim: numbers a head.
        algorithm: `standard`, `flash1` or `flash2`.
        fast_memory: elements that fast memory holds; from it the paper's tile sizes follow, M / 4d keys and at most d
            queries. None to take `block_q` and `block_k`.
        block_q: queries of a tile.
        block_k: keys of a tile.
        causal: whether a query sees no key after it. The standard algorithm hides them after computing them.
        layout: kept blocks, one pattern for all heads; its block is the size of both tiles.

    Raises:
        PerplabError: a size is not positive, or the layout does not belong to the length or the algorithm.
    """
    if min(length, head_dim, block_q, block_k) < 1 or (fast_memory is not None and fast_memory < 4 * head_dim):
        raise PerplabError(
            f"length {length}, head size {head_dim}, tiles {block_q} x {block_k}, fast memory {fast_memory}: too small",
            "use 1 or more, and a fast memory of 4 times the head size or more",
        )
    if algorithm == "standard":
        if layout is not None:
            raise PerplabError("the standard algorithm skips no block", "choose flash1 or flash2 for a layout")
        return AttentionCost(4 * length * head_dim + 4 * length**2, 4 * length**2 * head_dim)
    if fast_memory is not None:
        block_k = math.ceil(fast_memory / (4 * head_dim))
        block_q = min(block_k, head_dim)
    if layout is not None:
        block_q = block_k = layout.block
    visited = visited_tiles(length, block_q, block_k, causal=causal, layout=layout)
    rows, columns = _tile_sizes(length, block_q), _tile_sizes(length, block_k)
    scores = int(rows @ visited.long() @ columns)
    flops = 4 * scores * head_dim
    if algorithm == "flash1":
        read_by = int((visited.long() * rows[:, None]).sum())  # queries, counted once for each tile of keys they meet
        used = int(columns @ visited.any(dim=0).long())
        return AttentionCost(2 * used * head_dim + read_by * (3 * head_dim + 4), flops)
    brought = int((visited.long() * columns).sum())
    used = int(rows @ visited.any(dim=1).long())
    return AttentionCost(2 * used * head_dim + used + 2 * brought * head_dim, flops)


def visited_tiles(
    length: int, block_q: int, block_k: int, *, causal: bool = False, layout: BlockLayout | None = None
) -> Tensor:
    """Which tiles hold something visible: (tiles of queries, tiles of keys) booleans."""
    rows, columns = -(-length // block_q), -(-length // block_k)
    visited = torch.ones(rows, columns, dtype=torch.bool)
    if layout is not None:
        if layout.length != length or layout.kept.shape[0] != 1:
            raise PerplabError(
                f"the layout is for {layout.length} tokens and {layout.kept.shape[0]} heads, not {length} and 1",
                "make one pattern for this length",
            )
        visited = visited & layout.kept[0]
    if causal:
        last_query = torch.arange(1, rows + 1) * block_q - 1
        visited = visited & (torch.arange(columns) * block_k <= last_query.clamp(max=length - 1)[:, None])
    return visited


def _tile_sizes(length: int, block: int) -> Tensor:
    sizes = torch.full((-(-length // block),), block)
    sizes[-1] = length - block * (len(sizes) - 1)
    return sizes
