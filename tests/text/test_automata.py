from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from perplab.errors import PerplabError
from perplab.text.synthetic.automata import NO_EDGE, Automaton, sample_automaton

SYMBOLS = 5
seeds = st.integers(0, 2**32 - 1)


def drawn(seed):
    random = np.random.default_rng(seed)
    return sample_automaton(random, states=(4, 7), alphabet=(3, 5), out_degree=(1, 3), symbols=SYMBOLS)


def unminimised(seed):
    """States with edges to anywhere, itself too: some are equivalent, some are never reached."""
    random = np.random.default_rng(seed)
    table = random.integers(NO_EDGE, 5, (5, 3))
    table[:, 0] = random.integers(0, 5, 5)
    table[random.integers(5)] = table[random.integers(5)]
    return Automaton(table)


def language(automaton, longest):
    return {string for length in range(longest + 1) for string in automaton.strings(length)}


@settings(max_examples=30)
@given(seeds)
def test_sampled_strings_are_accepted_and_their_states_lead_on(seed):
    automaton = drawn(seed)
    string, states = automaton.sample(np.random.default_rng(seed), 20)
    assert automaton.accepts(string)
    assert states[0] == 0
    walk = zip(states[:-1], string[:-1], states[1:], strict=True)
    assert all(automaton.step(state, symbol) == after for state, symbol, after in walk)


def test_symbols_that_follow_a_state_are_equally_frequent():
    automaton = drawn(4)
    string, states = automaton.sample(np.random.default_rng(0), 30_000)
    assert automaton.out_degree.max() == 3
    for state in np.flatnonzero(automaton.out_degree > 1):
        row = automaton.transitions[state]
        counts = np.bincount(string[states == state], minlength=SYMBOLS)
        assert counts[row == NO_EDGE].sum() == 0
        expected = automaton.next_distribution(state)[row != NO_EDGE] * counts.sum()
        assert chisquare(counts[row != NO_EDGE], expected).pvalue > 0.001


@settings(max_examples=30)
@given(seeds)
def test_minimising_keeps_the_language(seed):
    automaton = unminimised(seed)
    minimal = automaton.minimise()
    assert language(minimal, 5) == language(automaton, 5)
    assert len(minimal.transitions) <= len(automaton.transitions)


@settings(max_examples=30)
@given(seeds)
def test_no_two_states_of_a_minimal_automaton_accept_the_same(seed):
    minimal = unminimised(seed).minimise()
    futures = [frozenset(minimal._spelled(state, 6)) for state in range(len(minimal.transitions))]
    assert len(set(futures)) == len(futures)


@settings(max_examples=30)
@given(seeds)
def test_minimising_twice_changes_nothing(seed):
    once = unminimised(seed).minimise()
    assert np.array_equal(once.minimise().transitions, once.transitions)


@settings(max_examples=30)
@given(seeds)
def test_the_canonical_key_does_not_depend_on_names_of_states(seed):
    automaton = unminimised(seed)
    others = np.random.default_rng(seed).permutation(np.arange(1, len(automaton.transitions)))
    new_name = np.concatenate(([0], others, [NO_EDGE]))  # the last serves -1
    table = np.empty_like(automaton.transitions)
    table[new_name[:-1]] = new_name[automaton.transitions]
    assert Automaton(table).canonical_key() == automaton.canonical_key()


@settings(max_examples=30)
@given(seeds, seeds)
def test_keys_are_equal_just_when_languages_are(one, other):
    first, second = unminimised(one), unminimised(other)
    assert (first.canonical_key() == second.canonical_key()) == (language(first, 7) == language(second, 7))


def test_strings_are_all_those_accepted():
    automaton = drawn(1)
    accepted = [string for string in product(range(SYMBOLS), repeat=4) if automaton.accepts(string)]
    assert list(automaton.strings(4)) == accepted


@settings(max_examples=30)
@given(seeds)
def test_a_drawn_automaton_keeps_to_its_ranges(seed):
    automaton = drawn(seed)
    assert 1 <= len(automaton.transitions) <= 7
    assert automaton.out_degree.min() >= 1
    assert automaton.out_degree.max() <= 3
    assert np.array_equal(automaton.minimise().transitions, automaton.transitions)


@pytest.mark.parametrize(
    "ranges",
    [
        {"states": (3, 7), "alphabet": (3, 5), "out_degree": (1, 3)},
        {"states": (4, 7), "alphabet": (2, 5), "out_degree": (1, 3)},
        {"states": (4, 7), "alphabet": (3, 6), "out_degree": (1, 3)},
        {"states": (7, 4), "alphabet": (3, 5), "out_degree": (1, 3)},
        {"states": (4, 7), "alphabet": (3, 5), "out_degree": (0, 3)},
    ],
)
def test_impossible_ranges_are_refused(ranges):
    with pytest.raises(PerplabError):
        sample_automaton(np.random.default_rng(0), symbols=SYMBOLS, **ranges)


def test_a_state_without_an_edge_is_refused():
    with pytest.raises(PerplabError, match="state 1 has no edge"):
        Automaton(np.array([[1, NO_EDGE], [NO_EDGE, NO_EDGE]]))


def test_a_step_without_an_edge_is_refused():
    with pytest.raises(PerplabError, match="no edge for symbol 1"):
        Automaton(np.array([[0, NO_EDGE]])).step(0, 1)
