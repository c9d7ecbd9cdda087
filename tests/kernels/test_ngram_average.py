import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.kernels.ngram_average import (
    ngram_average,
    ngram_average_reference,
    ngram_matches,
    ngram_occurrences,
)

SEPARATOR = 0


@st.composite
def rows(draw):
    """Ids of few kinds, documents side by side, padding on either side."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    ids = torch.randint(0, draw(st.integers(1, 4)), (batch, length), generator=generator)
    opens = torch.rand(batch, length, generator=generator) < draw(st.sampled_from((0.0, 0.2)))
    documents = opens.cumsum(1)
    before, after = (draw(st.integers(0, 4)) for _ in range(2))
    documents[0, :before] = -1
    documents[-1, length - after :] = -1
    return ids, documents


def ngrams_by_slices(tokens, documents, order, separator):
    """The n-gram that ends at each place, with its document; None where there is none."""
    found = []
    for end in range(len(tokens)):
        window = slice(end - order + 1, end + 1)
        is_whole = end >= order - 1 and len(set(documents[window])) == 1 and documents[end] >= 0
        reaches_back = separator is not None and separator in tokens[window][1:]
        found.append((documents[end], *tokens[window]) if is_whole and not reaches_back else None)
    return found


orders = st.integers(1, 4)
separators = st.sampled_from((None, SEPARATOR))


@settings(max_examples=60)
@given(rows(), orders, separators)
def test_matches_are_those_that_comparing_strings_finds(drawn, order, separator):
    ids, documents = drawn
    expected = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool)
    for row in range(len(ids)):
        ngrams = ngrams_by_slices(ids[row].tolist(), documents[row].tolist(), order, separator)
        for t in range(len(ngrams)):
            for s in range(1, t):
                expected[row, t, s] = ngrams[t] is not None and ngrams[t] == ngrams[s - 1]
    assert torch.equal(ngram_matches(ids, documents, order, separator=separator), expected)


@settings(max_examples=60)
@given(rows(), orders, separators)
def test_the_fast_average_is_the_dense_one_with_its_gradient(drawn, order, separator):
    ids, documents = drawn
    states = torch.randn(*ids.shape, 5, dtype=torch.float64, requires_grad=True)
    matches = ngram_matches(ids, documents, order, separator=separator)
    occurrences = ngram_occurrences(ids, documents, order, separator=separator)
    averages = ngram_average(states, occurrences), ngram_average_reference(states, matches)
    assert torch.allclose(*averages, atol=1e-12)
    weights = torch.randn_like(states)
    gradients = [torch.autograd.grad((average * weights).sum(), states)[0] for average in averages]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_keep_the_precision_of_their_dtype_on_long_rows(dtype):
    torch.manual_seed(0)
    ids = torch.randint(0, 3, (2, 700))
    documents = torch.zeros_like(ids)
    states = (torch.randn(2, 700, 8) + 100).to(dtype)  # sums that are large beside what is left of them
    exact = ngram_average_reference(states.double(), ngram_matches(ids, documents, 1))
    fast = ngram_average(states, ngram_occurrences(ids, documents, 1))
    dense = ngram_average_reference(states, ngram_matches(ids, documents, 1))
    rounding = 100 * torch.finfo(dtype).eps
    assert fast.dtype == dense.dtype == dtype
    assert (fast - exact).abs().max() < rounding
    assert (dense - exact).abs().max() < 16 * rounding  # it sums in float32


@settings(max_examples=30)
@given(rows(), orders)
def test_rows_of_weights_sum_to_one_or_zero_and_look_only_back(drawn, order):
    ids, documents = drawn
    matches = ngram_matches(ids, documents, order)
    weights = ngram_average_reference(torch.eye(ids.shape[1]).expand(len(ids), -1, -1), matches)
    sums = weights.sum(-1)
    assert torch.allclose(sums, matches.any(-1).float())
    assert not matches.triu().any()


@settings(max_examples=30)
@given(rows(), orders, separators)
def test_a_longer_ngram_looks_at_some_of_what_a_shorter_one_looks_at(drawn, order, separator):
    ids, documents = drawn
    shorter, longer = (ngram_matches(ids, documents, n, separator=separator) for n in (order, order + 1))
    assert not (longer & ~shorter).any()


@settings(max_examples=30)
@given(rows(), orders)
def test_names_of_tokens_do_not_matter(drawn, order):
    ids, documents = drawn
    other_names = torch.tensor([17, 3, 40_000, 5])[ids]
    states = torch.randn(*ids.shape, 3)
    averages = [ngram_average(states, ngram_occurrences(names, documents, order)) for names in (ids, other_names)]
    assert torch.allclose(*averages)


@settings(max_examples=30)
@given(rows(), orders, st.integers(1, 24))
def test_the_last_queries_are_the_last_rows(drawn, order, queries):
    ids, documents = drawn
    queries = min(queries, ids.shape[1])
    whole = ngram_matches(ids, documents, order)
    assert torch.equal(ngram_matches(ids, documents, order, queries=queries), whole[:, -queries:])
