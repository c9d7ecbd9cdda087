import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_blocks import blocks_of, drawn

from perplab.errors import PerplabError
from perplab.text import MixtureSampler, ReplaySampler

shares = st.floats(0, 1).map(lambda share: round(share, 3))


def sampler_of(share, new=7, old=5, seed=0):
    """New text of two domains, and old text of one that is called like one of them."""
    fresh = MixtureSampler({"prose": blocks_of(new, 0), "code": blocks_of(3, 1000)}, None, seed)
    return ReplaySampler(fresh, MixtureSampler({"prose": blocks_of(old, 2000)}, None, seed), share)


@given(shares, st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_every_batch_has_the_floor_or_the_ceiling_of_its_share(share, sizes):
    sampler = sampler_of(share)
    total = rows = 0
    for size in sizes:
        groups = sampler.next_batch(size).groups
        replayed = sum(name == "replayed prose" for name in groups)
        assert len(groups) == size
        assert math.floor(share * size + 1e-9) <= replayed <= math.ceil(share * size - 1e-9)
        total, rows = total + replayed, rows + size
        assert abs(total - share * rows) <= 0.5 + 1e-9


@pytest.mark.parametrize(("share", "batch", "counts"), [(0.25, 2, [1, 0, 1, 0]), (0.05, 20, [1] * 4), (0.1, 4, [0, 1])])
def test_what_a_batch_lacks_of_its_share_is_carried_to_the_next(share, batch, counts):
    sampler = sampler_of(share)
    found = [Counter(sampler.next_batch(batch).groups)["replayed prose"] for _ in counts]
    assert found == counts


def test_a_share_of_nothing_is_the_new_text_alone_and_of_one_the_old_alone():
    alone = MixtureSampler({"prose": blocks_of(7, 0), "code": blocks_of(3, 1000)}, None, 0)
    assert drawn(sampler_of(0.0), 8) == drawn(alone, 8)
    old = MixtureSampler({"prose": blocks_of(5, 2000)}, None, 0)
    assert drawn(sampler_of(1.0), 8) == [(f"replayed {name}", first) for name, first in drawn(old, 8)]


@given(st.sampled_from([0.1, 0.25, 0.5, 0.7]), st.integers(1, 6), st.integers(0, 2**40))
def test_no_block_of_either_side_is_lost_where_its_epoch_ends(share, batch, seed):
    rows = drawn(sampler_of(share, seed=seed), 60, batch)
    for group, count in (("prose", 7), ("code", 3), ("replayed prose", 5)):
        mine = [first for name, first in rows if name == group]
        for epoch in range(len(mine) // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count])) == count


@given(shares, st.integers(0, 15), st.integers(1, 5))
def test_a_resumed_sampler_goes_on_with_the_same_batches(share, before, batch):
    first = sampler_of(share)
    drawn(first, before, batch)
    state = json.loads(json.dumps(first.state_dict()))
    second = sampler_of(share, seed=9)
    second.load_state_dict(state)
    assert drawn(second, 10, batch) == drawn(first, 10, batch)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(PerplabError, match="a replayed share of"):
        sampler_of(share)
