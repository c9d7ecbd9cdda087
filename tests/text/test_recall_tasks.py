import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic import (
    compression,
    fuzzy_recall,
    in_context_recall,
    induction,
    memorization,
    mqar,
    noisy_recall,
    selective_copy,
)

SEEDS = st.integers(0, 2**32 - 1)
TASKS = {
    "mqar": (lambda rng, rows: mqar(rng, rows, length=64, pairs=8, vocab_size=128), 64, 128),
    "induction": (lambda rng, rows: induction(rng, rows, length=64), 64, 256),
    "in-context recall": (in_context_recall, 128, 16),
    "noisy recall": (noisy_recall, 128, 32),
    "fuzzy recall": (fuzzy_recall, 128, 16),
    "selective copy": (selective_copy, 256, 16),
    "compression": (compression, 32, 16),
    "memorization": (memorization, 32, 256),
}


def rows_of(task, seed=0, rows=20, **sizes):
    return task(np.random.default_rng(seed), rows, **sizes)


def asked(labels):
    return [(row, place) for row, place in zip(*np.nonzero(labels != IGNORED_LABEL), strict=True)]


def follower_of_first(row, place):
    """What followed the earliest occurrence of the token at `place`."""
    return row[np.flatnonzero(row[:place] == row[place])[0] + 1]


def assert_every_answer_follows(input_ids, labels, solve):
    places = asked(labels)
    assert places
    for row, place in places:
        assert labels[row, place] == solve(input_ids[row], place)


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_the_published_sizes_and_tokens_of_the_vocabulary(name):
    task, length, vocabulary = TASKS[name]
    input_ids, labels = rows_of(task)
    assert input_ids.shape == labels.shape == (20, length)
    assert input_ids.dtype == labels.dtype == np.int64
    answers = labels[labels != IGNORED_LABEL]
    for tokens in (input_ids, answers):
        assert tokens.min() >= 0
        assert tokens.max() < vocabulary
    assert (labels != IGNORED_LABEL).any(axis=1).all()


@pytest.mark.parametrize("name", TASKS)
def test_one_seed_gives_one_batch_and_another_seed_another(name):
    task = TASKS[name][0]
    (first, first_labels), (again, again_labels), (other, _) = (rows_of(task, seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first_labels == again_labels).all()
    assert (first != other).any()


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 12), st.integers(0, 9), st.sampled_from([0.01, 0.5, 1.0]))
def test_mqar_asks_for_each_key_once_at_an_even_distance_and_is_answered_by_its_value(seed, pairs, spare, power):
    length, vocabulary = 4 * pairs + 2 * spare, 40
    input_ids, labels = rows_of(mqar, seed, 5, length=length, pairs=pairs, vocab_size=vocabulary, power=power)
    keys, values = input_ids[:, : 2 * pairs : 2], input_ids[:, 1 : 2 * pairs : 2]
    assert (keys < vocabulary // 2).all()
    assert (values >= vocabulary // 2).all()
    assert_every_answer_follows(input_ids, labels, follower_of_first)
    for row, answers in zip(input_ids, labels, strict=True):
        places = np.flatnonzero(answers != IGNORED_LABEL)
        assert (places >= 2 * pairs).all()
        assert (places % 2 == 0).all()
        assert sorted(row[places]) == sorted(set(row[: 2 * pairs : 2]))
        assert len(places) == pairs
        assert len(set(row[1 : 2 * pairs : 2])) == pairs


def test_mqar_fills_the_other_slots_with_the_whole_vocabulary():
    input_ids, labels = rows_of(mqar, rows=400, length=32, pairs=2, vocab_size=12)
    others = input_ids[:, 4:][labels[:, 4:] == IGNORED_LABEL]
    counts = np.bincount(others, minlength=12)
    assert counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_the_gap_of_a_single_query_follows_the_power_law(power):
    _, labels = rows_of(mqar, rows=20_000, length=18, pairs=1, vocab_size=8, power=power)
    places = np.argmax(labels != IGNORED_LABEL, axis=1)
    expected = np.arange(1, 9) ** (power - 1.0)
    found = np.bincount((places - 2) // 2, minlength=8) / len(places)
    assert np.abs(found - expected / expected.sum()).max() < 0.015


def test_two_gaps_follow_the_law_of_drawing_one_after_the_other():
    _, labels = rows_of(mqar, rows=40_000, length=10, pairs=2, vocab_size=8, power=0.01)
    used = labels[:, 4::2] != IGNORED_LABEL
    law = np.arange(1, 4) ** -0.99
    law /= law.sum()
    unused = {
        last: sum(law[a] * law[b] / (1 - law[a]) for a in range(3) for b in range(3) if len({a, b, last}) == 3)
        for last in range(3)
    }
    for last, probability in unused.items():
        assert abs((~used[:, last]).mean() - probability) < 0.01


@settings(max_examples=30)
@given(SEEDS, st.integers(2, 20))
def test_induction_repeats_the_row_from_a_random_place_and_asks_for_what_followed(seed, half):
    input_ids, labels = rows_of(induction, seed, 5, length=2 * half, vocab_size=20)
    assert_every_answer_follows(input_ids, labels, follower_of_first)
    for row, answers in zip(input_ids, labels, strict=True):
        first, second = row[:half], row[half:]
        assert len(set(first)) == half
        assert any((np.roll(first, -shift) == second).all() for shift in range(half))
        unasked = np.flatnonzero(answers[half:] == IGNORED_LABEL)
        assert second[unasked].tolist() == [first[-1]]
        assert (answers[:half] == IGNORED_LABEL).all()


def test_induction_cannot_be_answered_by_looking_back_a_fixed_distance():
    input_ids, labels = rows_of(induction, rows=200, length=32)
    for distance in range(32):
        hits = [
            labels[row, place] == input_ids[row, place - distance]
            for row, place in asked(labels)
            if place - distance >= 0
        ]
        assert np.mean(hits) < 0.25


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_recall_asks_for_every_key_that_returns_and_only_then(noise):
    input_ids, labels = rows_of(noisy_recall, noise=noise)
    assert_every_answer_follows(input_ids, labels, follower_of_first)
    for row, answers in zip(input_ids, labels, strict=True):
        for place in range(0, 128, 2):
            is_returning = row[place] < 8 and row[place] in row[:place]
            assert (answers[place] != IGNORED_LABEL) == is_returning
        assert (answers[1::2] == IGNORED_LABEL).all()
        assert answers[-2] != IGNORED_LABEL


def test_noise_takes_its_share_of_the_pairs_whole():
    input_ids, labels = rows_of(noisy_recall, rows=400)
    is_noise = input_ids.reshape(400, -1, 2) >= 16
    assert (is_noise[..., 0] == is_noise[..., 1]).all()
    assert abs(is_noise[..., 0].mean() - 0.2 * 62 / 64) < 0.02
    assert (labels[input_ids >= 16] == IGNORED_LABEL).all()


def test_recall_without_noise_has_keys_and_values_in_turn():
    input_ids, labels = rows_of(in_context_recall)
    assert (input_ids[:, ::2] < 8).all()
    assert (input_ids[:, 1::2] >= 8).all()
    assert_every_answer_follows(input_ids, labels, lambda row, place: row[place + 1])


def motifs_of(row):
    """A row's (key, value) motifs with the place of each value's first token, read off without the generator."""
    pairs, place = [], int(np.argmax(row != 15))
    while place < len(row):
        start = place
        while place < len(row) and row[place] < 7:
            place += 1
        middle = place
        while place < len(row) and 7 <= row[place] < 15:
            place += 1
        pairs.append((tuple(row[start:middle]), tuple(row[middle:place]), middle))
    return pairs


@settings(max_examples=20)
@given(SEEDS)
def test_fuzzy_recall_asks_for_every_token_of_a_returning_motif(seed):
    input_ids, labels = rows_of(fuzzy_recall, seed, 4)
    for row, answers in zip(input_ids, labels, strict=True):
        expected = np.full(128, IGNORED_LABEL)
        known = {}
        for key, value, begins in motifs_of(row):
            assert 1 <= len(set(key)) == len(key) <= 3
            assert 1 <= len(set(value)) == len(value) <= 3
            if key in known:
                assert known[key] == value
                expected[begins - 1 : begins - 1 + len(value)] = value
            known[key] = value
        assert (answers == expected).all()
        assert (expected != IGNORED_LABEL).any()


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 9), st.integers(0, 9))
def test_selective_copy_is_answered_by_what_is_not_blank(seed, copied, blanks):
    length = 2 * copied + 1 + blanks
    input_ids, labels = rows_of(selective_copy, seed, 4, length=length, copied=copied)
    for row, answers in zip(input_ids, labels, strict=True):
        before = row[: length - copied - 1]
        assert answers[-copied:].tolist() == before[before != 14].tolist()
        assert row[length - copied - 1] == 15
        assert (row[-copied:] == 14).all()
        assert (answers[:-copied] == IGNORED_LABEL).all()


def test_compression_has_to_give_the_row_back():
    input_ids, labels = rows_of(compression)
    assert (input_ids == labels).all()
    assert (input_ids[:, :-1] < 15).all()
    assert (input_ids[:, -1] == 15).all()


def test_memorization_asks_for_one_table_in_every_batch():
    table = {}
    for seed in range(5):
        input_ids, labels = rows_of(memorization, seed, rows=100)
        assert (input_ids[:, 1::2] == 255).all()
        for key, value in zip(input_ids[:, ::2].flat, labels[:, 1::2].flat, strict=True):
            assert table.setdefault(key, value) == value
    assert sorted(table) == list(range(127))
    assert len(set(table.values())) == 127
    assert min(table.values()) >= 127
    (_, one), (_, other) = (rows_of(memorization, table_seed=seed) for seed in (0, 1))
    assert (one != other).any()


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        (mqar, {"length": 15, "pairs": 2}),
        (mqar, {"length": 16, "pairs": 5}),
        (mqar, {"length": 16, "pairs": 0}),
        (mqar, {"length": 64, "pairs": 9, "vocab_size": 16}),
        (induction, {"length": 2}),
        (induction, {"length": 7}),
        (induction, {"length": 32, "vocab_size": 15}),
        (in_context_recall, {"length": 5}),
        (in_context_recall, {"vocab_size": 1}),
        (noisy_recall, {"noise_tokens": 0}),
        (noisy_recall, {"noise": 1.5}),
        (fuzzy_recall, {"length": 11}),
        (fuzzy_recall, {"vocab_size": 6}),
        (fuzzy_recall, {"longest_motif": 0}),
        (selective_copy, {"length": 32}),
        (selective_copy, {"vocab_size": 2}),
        (compression, {"length": 1}),
        (memorization, {"length": 3}),
        (memorization, {"vocab_size": 2}),
    ],
)
def test_sizes_that_leave_no_task_are_refused_in_one_line(task, sizes):
    with pytest.raises(PerplabError) as refused:
        rows_of(task, **sizes)
    assert "\n" not in str(refused.value)


def test_the_rows_do_not_need_torch():
    code = "import sys, perplab.text.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
