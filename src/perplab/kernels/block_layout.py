"""Which blocks of the attention matrix are kept: layouts for block-sparse attention.

Decisions:
- A layout belongs to one length. Queries and keys are the same tokens, cut into blocks of equal size, the last of which
  may be short.
- It holds one pattern for all heads, or one a head.
- It says nothing about causality: `density` and the attention take `causal` and leave out what lies after a query.
- Layouts of one length and block size combine by `&` and `|`, as the masks they stand for do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perplab.errors import PerplabError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Kept blocks of a (length, length) attention matrix.

    Args:
        kept: (1 or heads, blocks, blocks) booleans: query block, key block.
        block: tokens of a block.
        length: tokens of the sequence; it has ceil(length / block) blocks.

    Raises:
        PerplabError: `kept` has another number of blocks, or block or length is not positive.
    """

    kept: Tensor
    block: int
    length: int

    def __post_init__(self) -> None:
        """Refuse what does not describe the blocks of this length."""
        blocks = _blocks(self.length, self.block)
        if self.kept.ndim != 3 or self.kept.shape[1:] != (blocks, blocks) or self.kept.dtype != torch.bool:
            raise PerplabError(
                f"{self.length} tokens have {blocks} blocks of {self.block}, and the layout is "
                f"{self.kept.dtype} {tuple(self.kept.shape)}",
                f"give booleans of (heads, {blocks}, {blocks})",
            )

    @classmethod
    def local(cls, length: int, block: int, width: int) -> "BlockLayout":
        """Blocks at a distance below `width`: the block itself and `width - 1` on either side."""
        query, key = _grid(length, block)
        return cls(((query - key).abs() < width)[None], block, length)

    @classmethod
    def butterfly(cls, length: int, block: int) -> "BlockLayout":
        """Each block with itself and with those whose number differs in one binary digit.

        Blocks are counted up to the next power of two; partners past the end do not exist.
        """
        query, key = _grid(length, block)
        differing = query ^ key
        return cls(((differing & (differing - 1)) == 0)[None], block, length)

    @classmethod
    def strided(cls, length: int, block: int, stride: int) -> "BlockLayout":
        """Every key block whose distance is a multiple of `stride` blocks."""
        query, key = _grid(length, block)
        return cls(((query - key) % _at_least_one(stride, "stride") == 0)[None], block, length)

    @classmethod
    def global_(cls, length: int, block: int, count: int) -> "BlockLayout":
        """The first `count` key blocks, for every query."""
        query, key = _grid(length, block)
        return cls((key < count).expand(len(query), -1)[None].clone(), block, length)

    @classmethod
    def from_dense(cls, mask: Tensor, block: int) -> "BlockLayout":
        """The blocks in which a (length, length) or (heads, length, length) mask shows anything."""
        mask = mask[None] if mask.ndim == 2 else mask
        length = mask.shape[-1]
        blocks = _blocks(length, block)
        short = blocks * block - length
        padded = torch.nn.functional.pad(mask, (0, short, 0, short))
        return cls(padded.view(-1, blocks, block, blocks, block).any(dim=4).any(dim=2), block, length)

    def __and__(self, other: "BlockLayout") -> "BlockLayout":
        self._check_alike(other)
        return BlockLayout(self.kept & other.kept, self.block, self.length)

    def __or__(self, other: "BlockLayout") -> "BlockLayout":
        self._check_alike(other)
        return BlockLayout(self.kept | other.kept, self.block, self.length)

    def density(self, *, causal: bool = False) -> float:
        """Kept share of all blocks; with `causal`, of those on and below the diagonal."""
        counted = torch.ones_like(self.kept)
        if causal:
            counted = counted.tril()
        return float((self.kept & counted).sum() / counted.sum())

    def to_dense(self, *, causal: bool = False) -> Tensor:
        """Which key each query may see, (1 or heads, length, length) booleans."""
        dense = self.kept.repeat_interleave(self.block, dim=1).repeat_interleave(self.block, dim=2)
        dense = dense[:, : self.length, : self.length]
        return dense.tril() if causal else dense

    def to_block_mask(self, *, causal: bool = False, device: torch.device | str = "cpu") -> "BlockMask":
        """The same for torch's `flex_attention`."""
        from torch.nn.attention.flex_attention import BlockMask

        kept = (self.kept.tril() if causal else self.kept).to(device)
        order = torch.argsort(kept.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            """Holds the layout too, because flex_attention that is not compiled looks at nothing else."""
            seen = kept[head % len(kept), query // self.block, key // self.block]
            return seen & (query >= key) if causal else seen

        return BlockMask.from_kv_blocks(
            kept.sum(dim=-1, dtype=torch.int32)[None],
            order[None],
            BLOCK_SIZE=self.block,
            mask_mod=sees,
            seq_lengths=(self.length, self.length),
        )

    def _check_alike(self, other: "BlockLayout") -> None:
        if (self.block, self.length) != (other.block, other.length):
            raise PerplabError(
                f"layouts of {self.length} tokens in blocks of {self.block} and of {other.length} in blocks of "
                f"{other.block} cannot be combined",
                "make both for one length and block size",
            )


def _blocks(length: int, block: int) -> int:
    return -(-_at_least_one(length, "length") // _at_least_one(block, "block size"))


def _grid(length: int, block: int) -> tuple[Tensor, Tensor]:
    """Numbers of query blocks as a column and of key blocks as a row."""
    numbers = torch.arange(_blocks(length, block))
    return numbers[:, None], numbers[None, :]


def _at_least_one(number: int, name: str) -> int:
    if number < 1:
        raise PerplabError(f"a {name} of {number} leaves nothing", "use 1 or more")
    return number
