import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_blocks import blocks_of, drawn

from perplab.errors import PerplabError
from perplab.text import MixtureSampler

NAMES = ("cpp", "prose", "python", "rust", "tex")


def groups_of(counts):
    return {name: blocks_of(count, 1000 * at) for at, (name, count) in enumerate(zip(NAMES, counts, strict=False))}


weight_lists = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(st.floats(0.01, 10), min_size=k, max_size=k), min_size=1, max_size=6)
)


@given(weight_lists)
def test_counts_stay_within_the_stated_bound_while_weights_change(schedule):
    k = len(schedule[0])
    sampler = MixtureSampler(groups_of([3] * k), None, seed=0)
    owed, counts = dict.fromkeys(NAMES[:k], 0.0), Counter()
    for weights in schedule:
        sampler.set_weights(dict(zip(NAMES, weights, strict=False)))
        for _ in range(25):
            for name, weight in sampler.weights.items():
                owed[name] += weight
            counts[sampler.next_batch(1).groups[0]] += 1
            for name in owed:
                shortfall = owed[name] - counts[name]
                assert -(1 - 1 / k) - 1e-9 <= shortfall <= sum(1 / j for j in range(2, k + 1)) + 1e-9


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 2**40))
def test_each_epoch_of_a_group_draws_each_of_its_blocks_once(counts, seed):
    groups = groups_of(counts)
    rows = drawn(MixtureSampler(groups, dict.fromkeys(groups, 1.0), seed), batches=12)
    for name, count in zip(NAMES, counts, strict=False):
        mine = [first for group, first in rows if group == name]
        for epoch in range(len(mine) // count):
            assert len(set(mine[epoch * count : (epoch + 1) * count])) == count


@given(st.data(), st.lists(st.integers(1, 7), min_size=2, max_size=4), st.integers(0, 20), st.integers(0, 9))
def test_a_resumed_sampler_goes_on_with_the_same_sequence(data, counts, before, seed):
    groups = groups_of(counts)
    weights = data.draw(st.fixed_dictionaries({name: st.floats(0.1, 5) for name in groups}))
    first = MixtureSampler(groups, None, seed)
    drawn(first, before)
    first.set_weights(weights)
    drawn(first, data.draw(st.integers(0, 5)))
    resumed = MixtureSampler(groups, None, seed=seed + 1)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert drawn(resumed, 20) == drawn(first, 20)
    assert resumed.state_dict() == first.state_dict()


def test_another_seed_gives_another_order_and_the_same_seed_the_same():
    orders = [drawn(MixtureSampler(groups_of([50]), None, seed), 15) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_the_order_in_which_groups_are_given_does_not_matter():
    groups = groups_of([5, 6, 7])
    backwards = dict(reversed(groups.items()))
    assert drawn(MixtureSampler(groups, None, 3), 20) == drawn(MixtureSampler(backwards, None, 3), 20)


def test_without_weights_groups_are_drawn_by_their_tokens():
    sampler = MixtureSampler(groups_of([10, 30]), None, seed=0)
    assert sampler.weights == {"cpp": 0.25, "prose": 0.75}
    assert Counter(group for group, _ in drawn(sampler, 40, batch_size=1)) == {"cpp": 10, "prose": 30}


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.integers(0, 10))
def test_a_group_without_weight_is_not_drawn_however_much_it_was_owed(weights, before):
    groups = groups_of([4, 4, 4])
    sampler = MixtureSampler(groups, dict(zip(NAMES, weights, strict=False)), seed=0)
    drawn(sampler, before, batch_size=1)
    sampler.set_weights({"prose": 1.0, "python": 2.0})
    counts = Counter(group for group, _ in drawn(sampler, 60, batch_size=1))
    assert set(counts) == {"prose", "python"}
    assert abs(counts["prose"] - 20) <= 2


def test_a_batch_holds_the_rows_of_its_blocks():
    groups = groups_of([4, 4])
    batch = MixtureSampler(groups, None, seed=0).next_batch(6)
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (6, 2)
    for row, name in enumerate(batch.groups):
        theirs = [groups[name].block(index) for index in range(4)]
        assert any(
            np.array_equal(batch.input_ids[row], block.input_ids) and np.array_equal(batch.labels[row], block.labels)
            for block in theirs
        )


@pytest.mark.parametrize(
    "weights", [{"rust": 1.0}, {"cpp": -1.0, "prose": 2.0}, {"cpp": 0.0}, {}, {"cpp": float("nan")}]
)
def test_weights_that_are_no_shares_are_refused_and_change_nothing(weights):
    sampler = MixtureSampler(groups_of([4, 4]), None, seed=0)
    with pytest.raises(PerplabError):
        sampler.set_weights(weights)
    assert sampler.weights == {"cpp": 0.5, "prose": 0.5}


@pytest.mark.parametrize("counts", [[4], [4, 5], [4, 4, 4]])
def test_a_state_of_other_groups_or_blocks_is_refused(counts):
    state = MixtureSampler(groups_of([4, 4]), None, seed=0).state_dict()
    with pytest.raises(PerplabError, match="other data"):
        MixtureSampler(groups_of(counts), None, seed=0).load_state_dict(state)
