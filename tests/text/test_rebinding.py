import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.rebinding import rebinding


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), keys=st.integers(1, 6), bindings=st.integers(1, 4))
def test_every_key_is_asked_once_and_answered_by_its_last_value(seed, keys, bindings):
    input_ids, labels = rebinding(np.random.default_rng(seed), 5, keys=keys, bindings=bindings, vocab_size=20)
    written = 2 * keys * bindings
    assert input_ids.shape == labels.shape == (5, written + 2 * keys)
    for row, answers in zip(input_ids.tolist(), labels.tolist(), strict=True):
        pairs = list(zip(row[:written:2], row[1:written:2], strict=True))
        held = dict(pairs)
        assert all(key < 10 <= value for key, value in pairs)
        assert [key for key, _ in pairs].count(pairs[0][0]) == bindings
        assert sorted(row[written::2]) == sorted(held)
        assert answers[written::2] == [held[key] for key in row[written::2]] == row[written + 1 :: 2]
        assert {*answers[:written], *answers[written + 1 :: 2]} == {IGNORED_LABEL}


def test_same_seed_gives_the_same_rows():
    one, other = (rebinding(np.random.default_rng(3), 4, keys=4, bindings=2, vocab_size=16) for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("wrong", [{"keys": 9}, {"keys": 0}, {"bindings": 0}])
def test_rows_that_cannot_be_made_are_refused(wrong):
    with pytest.raises(PerplabError, match="keys bound"):
        rebinding(np.random.default_rng(0), 1, **({"keys": 4, "bindings": 2, "vocab_size": 16} | wrong))
