"""Blocks of two positions that are known by their first input, and what a sampler draws of them."""

import numpy as np

from perplab.text import PackedBlocks, TokenStore


def blocks_of(count, first_token):
    """`count` blocks of two positions; the first input of each is a token of its own."""
    tokens = np.arange(first_token, first_token + 2 * count, dtype=np.uint16)
    store = TokenStore(
        tokens=tokens,
        offsets=np.arange(0, 2 * count + 1, 2),
        document_bytes=np.ones(count, dtype=np.int64),
        document_domain=np.zeros(count, dtype=np.int32),
        domains=("text",),
        token_bytes=np.ones(1 << 16, dtype=np.int64),
        bos=0,
        eos=0,
    )
    return PackedBlocks(store, None, 2)


def drawn(sampler, batches, batch_size=3):
    """The group and first input of each row of the next batches."""
    rows = []
    for _ in range(batches):
        batch = sampler.next_batch(batch_size)
        rows += list(zip(batch.groups, batch.input_ids[:, 0].tolist(), strict=True))
    return rows
