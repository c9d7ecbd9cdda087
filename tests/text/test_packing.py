import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.text import IGNORED_LABEL, PackedBlocks, TokenStore

BOS, EOS = 1, 2


def store_of(documents):
    """A store in memory; `documents` are lists of token ids without the bos token."""
    tokens = np.array([token for ids in documents for token in [BOS, *ids]], dtype=np.uint16)
    lengths = [len(ids) + 1 for ids in documents]
    return TokenStore(
        tokens=tokens,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        document_bytes=np.array(lengths, dtype=np.int64),
        document_domain=np.zeros(len(documents), dtype=np.int32),
        domains=("text",),
        token_bytes=np.ones(1000, dtype=np.int64),
        bos=BOS,
        eos=EOS,
    )


def whole(blocks):
    """All blocks laid end to end: input ids, labels, position ids."""
    rows = [blocks.block(index) for index in range(len(blocks))]
    return tuple(np.concatenate(column) for column in zip(*rows, strict=True))


@st.composite
def packings(draw):
    documents = draw(st.lists(st.lists(st.integers(3, 900), max_size=12), min_size=1, max_size=8))
    chosen = draw(st.none() | st.lists(st.integers(0, len(documents) - 1), min_size=1, max_size=8))
    return documents, chosen, draw(st.integers(1, 9))


@given(packings())
def test_every_token_and_every_end_is_scored_once_after_the_tokens_before_it(packing):
    documents, chosen, block_size = packing
    blocks = PackedBlocks(store_of(documents), None if chosen is None else np.array(chosen), block_size)
    input_ids, labels, _ = whole(blocks)
    order = range(len(documents)) if chosen is None else chosen
    assert labels[labels != IGNORED_LABEL].tolist() == [t for d in order for t in [*documents[d], EOS]]
    assert input_ids[labels != IGNORED_LABEL].tolist() == [t for d in order for t in [BOS, *documents[d]]]
    assert blocks.num_tokens == np.count_nonzero(labels != IGNORED_LABEL)
    assert len(blocks) * block_size == len(labels)
    assert len(labels) - blocks.num_tokens < block_size


@given(packings())
def test_positions_count_from_the_start_of_the_document_or_of_the_block(packing):
    documents, chosen, block_size = packing
    blocks = PackedBlocks(store_of(documents), None if chosen is None else np.array(chosen), block_size)
    input_ids, labels, position_ids = whole(blocks)
    for at in range(len(labels)):
        begins = at % block_size == 0 or input_ids[at] == BOS or labels[at] == IGNORED_LABEL
        assert position_ids[at] == (0 if begins else position_ids[at - 1] + 1)


def test_the_rest_of_the_last_block_is_padding_that_sees_only_itself():
    blocks = PackedBlocks(store_of([[5, 6]]), None, 8)
    input_ids, labels, position_ids = blocks.block(0)
    assert input_ids.tolist() == [BOS, 5, 6, EOS, EOS, EOS, EOS, EOS]
    assert labels.tolist() == [5, 6, EOS] + [IGNORED_LABEL] * 5
    assert position_ids.tolist() == [0, 1, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("documents", [[], [3], [-1]])
def test_a_choice_outside_the_store_is_refused(documents):
    with pytest.raises(PerplabError):
        PackedBlocks(store_of([[5], [6]]), np.array(documents, dtype=np.int64), 4)


def test_there_is_no_block_beyond_the_last_and_no_block_size_below_one():
    blocks = PackedBlocks(store_of([[5], [6]]), None, 4)
    for index in (-1, len(blocks)):
        with pytest.raises(IndexError):
            blocks.block(index)
    with pytest.raises(PerplabError, match="not positive"):
        PackedBlocks(store_of([[5]]), None, 0)
