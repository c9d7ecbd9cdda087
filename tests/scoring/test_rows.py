import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.scoring.requests import Request
from perplab.scoring.rows import LEAST_SHARED, rows_of


def ids(*tokens):
    return np.array(tokens, dtype=np.int32)


@st.composite
def request_lists(draw):
    """Requests over a small alphabet whose contexts are beginnings of one another more often than not."""
    trunk = draw(st.lists(st.integers(0, 2), min_size=1, max_size=60))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        shared = draw(st.integers(0, len(trunk)))
        own = draw(st.lists(st.integers(0, 2), max_size=30))
        trunk = [*trunk[:shared], *own] or [0]
        found.append(Request(ids(*trunk), ids(*draw(st.lists(st.integers(0, 2), min_size=1, max_size=20)))))
    return found


def way_to(row, place):
    """Places in the row from the root of its tree to `place`."""
    segments = row.tree.segments
    index = next(number for number, segment in enumerate(segments) if segment.start <= place < segment.end)
    way = list(range(segments[index].start, place + 1))
    while (index := segments[index].parent) >= 0:
        way = [*range(segments[index].start, segments[index].end), *way]
    return way


@given(request_lists(), st.integers(1, 200))
def test_every_scored_token_is_predicted_from_exactly_what_its_request_says(requests, budget):
    scored = 0
    for row in rows_of(requests, budget):
        for place, label, index, offset in zip(row.predictors, row.labels, row.request, row.offset, strict=True):
            request = requests[int(index)]
            read = row.input_ids[way_to(row, int(place))].tolist()
            assert read == [*request.context, *request.continuation[: int(offset)]]
            assert int(label) == request.continuation[int(offset)]
            scored += 1
    assert scored == sum(len(request.continuation) for request in requests)


@given(request_lists(), st.integers(1, 200))
def test_rows_keep_requests_in_order_and_within_the_budget(requests, budget):
    rows = list(rows_of(requests, budget))
    assert [request for row in rows for request in row.requests] == requests
    for row in rows:
        assert len(row.input_ids) <= budget or len(row.requests) == 1
        assert [segment.start for segment in row.tree.segments][1:] == [s.end for s in row.tree.segments[:-1]]
        assert row.tree.segments[-1].end == len(row.input_ids)


def test_a_shared_beginning_is_read_once_at_every_depth():
    """Shots, questions after them, choices after those: each token of the tree once."""
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 1000, 50)
    requests, tokens = [], 50
    for _ in range(3):
        question = rng.integers(0, 1000, 20)
        tokens += 20
        for _ in range(4):
            choice = rng.integers(0, 1000, 5)
            tokens += len(choice) - 1
            requests.append(Request(np.concatenate((shots, question)).astype(np.int32), choice.astype(np.int32)))
    (row,) = rows_of(requests, 10**6)
    assert len(row.input_ids) == tokens


def test_choices_of_one_token_cost_nothing_beyond_their_context():
    context = np.arange(30, dtype=np.int32)
    (row,) = rows_of([Request(context, ids(choice)) for choice in range(4)], 10**6)
    assert row.input_ids.tolist() == context.tolist()
    assert row.predictors.tolist() == [29] * 4


def test_beginnings_too_short_to_be_worth_a_branch_are_not_shared():
    short = np.arange(LEAST_SHARED - 1, dtype=np.int32)
    (row,) = rows_of([Request(short, ids(50, 51)), Request(short, ids(60, 61))], 10**6)
    assert len(row.input_ids) == 2 * (len(short) + 1)


def test_requests_without_context_or_without_a_token_to_score_are_refused():
    with pytest.raises(PerplabError, match="no context"):
        Request(ids(), ids(1))
    with pytest.raises(PerplabError, match="no token to score"):
        Request(ids(1), ids())
