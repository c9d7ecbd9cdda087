"""Sequences cut into chunks, for states that are carried from chunk to chunk.

Decisions:
- Chunks stand in the layout (chunks, sequences, chunk_size, features), where a sequence is one head of one row: the
  chunks of one step of a scan lie next to each other, and so do the chunks of some steps.
- The last chunk is filled up with zeros, which change no state.
- Work is done on blocks of chunks, so that on a CPU everything of a block stays in cache.
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perplab.kernels.chunk_factors import ChunkFactors, chunk_factors

CACHED_MATRICES = 64
"""Chunks of all heads that are worked on together on a CPU: about its cache."""

PARALLEL_MATRICES = 8192
"""The same elsewhere: enough to fill the device."""


class Block(NamedTuple):
    """Some chunks of some sequences, n matrices: the sequences of one chunk, then those of the next."""

    sequences: int
    has_decay: bool
    query: Tensor
    """(n, chunk_size, key_dim), as `key`."""
    key: Tensor
    value: Tensor
    """(n, chunk_size, value_dim)."""
    beta: Tensor | None
    """(n, chunk_size, 1)."""
    factors: ChunkFactors

    def steps(self, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
        """The parts of tensors (n, ...) that belong to each chunk, in order; None stays None."""
        chunks = len(self.query) // self.sequences
        parts = (repeat(None, chunks) if tensor is None else torch.split(tensor, self.sequences) for tensor in tensors)
        return [*zip(*parts, strict=True)]


def row_groups(states: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of (batch, heads, ...) that are worked on together, and the numbers of their sequences."""
    batch, heads = states.shape[:2]
    together = max(1, _at_once(states) // heads)
    for first in range(0, batch, together):
        last = min(first + together, batch)
        yield slice(first, last), slice(first * heads, last * heads)


def block_places(states: Tensor, chunk_size: int) -> list[tuple[slice, slice]]:
    """Cut (rows, heads, length, ...) into blocks, in order: the chunks of each, and its tokens."""
    rows, heads, length = states.shape[:3]
    together = max(1, _at_once(states) // (rows * heads))
    chunks = -(-length // chunk_size)
    ends = [(first, min(first + together, chunks)) for first in range(0, chunks, together)]
    return [(slice(a, b), slice(a * chunk_size, min(b * chunk_size, length))) for a, b in ends]


class Sequences(NamedTuple):
    """The inputs of `chunkwise_state`."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor | None
    decay: Tensor | None
    position_ids: Tensor | None

    def rows(self, rows: slice) -> "Sequences":
        """Some rows."""
        return Sequences(*(None if given is None else given[rows] for given in self))  # type: ignore[arg-type]

    def block(self, tokens: slice, chunk_size: int) -> Block:
        """The chunks of some tokens of all rows."""
        opens = None if self.position_ids is None else self.position_ids[:, None, tokens] == 0
        borders = None
        if opens is not None and opens.any():
            borders = to_chunks(opens.expand(-1, self.query.shape[1], -1), chunk_size)
        beta, decay = (
            None if given is None else to_chunks(given[:, :, tokens], chunk_size) for given in (self.beta, self.decay)
        )
        wide = torch.promote_types(self.query.dtype, torch.float32)
        causal = torch.ones(chunk_size, chunk_size, dtype=wide, device=self.query.device).tril()
        return Block(
            self.query.shape[0] * self.query.shape[1],
            decay is not None,
            to_chunks(self.query[:, :, tokens], chunk_size),
            to_chunks(self.key[:, :, tokens], chunk_size),
            to_chunks(self.value[:, :, tokens], chunk_size),
            None if beta is None else beta[..., None],
            chunk_factors(decay, borders, causal),
        )


def to_chunks(states: Tensor, chunk_size: int) -> Tensor:
    """Lay (rows, heads, length, ...) out as (chunks * rows * heads, chunk_size, ...), contiguous."""
    missing = -states.shape[2] % chunk_size
    if missing:
        states = F.pad(states, [0, 0] * (states.ndim - 3) + [0, missing])
    return states.view(*states.shape[:2], -1, chunk_size, *states.shape[3:]).movedim(2, 0).flatten(0, 2).contiguous()


def from_chunks(chunked: Tensor, like: Tensor) -> Tensor:
    """Lay chunks out as (rows, heads, length, ...), the first three axes of `like`."""
    rows, heads, length = like.shape[:3]
    return chunked.view(-1, rows, heads, *chunked.shape[1:]).movedim(0, 2).flatten(2, 3)[:, :, :length]


def _at_once(states: Tensor) -> int:
    return CACHED_MATRICES if states.device.type == "cpu" else PARALLEL_MATRICES
