import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.language_learning import (
    LETTERS,
    PADDING,
    SEPARATOR,
    VOCABULARY_SIZE,
    Episodes,
    LanguageLearningConfig,
    data_card,
    language_learning_episodes,
)

CONFIG = LanguageLearningConfig(train=30, validation=5, test=8, string_length=(1, 9), length=100)


@pytest.fixture(scope="module")
def splits():
    return language_learning_episodes(CONFIG)


def test_no_language_is_in_two_splits_or_twice_in_one(splits):
    keys = [automaton.canonical_key() for episodes in splits.values() for automaton in episodes.automata]
    assert len(set(keys)) == len(keys) == 43


def test_every_string_of_a_row_is_accepted(splits):
    for automaton, ids in zip(splits["test"].automata, splits["test"].input_ids, strict=True):
        text = "".join(f"{LETTERS}|."[token] for token in ids).rstrip(".")
        for string in text.split("|"):
            assert automaton.accepts([LETTERS.index(letter) for letter in string])


def test_labels_are_the_next_symbols_and_never_ends_of_strings(splits):
    episodes = splits["train"]
    following = episodes.input_ids[:, 1:]
    labels = episodes.labels[:, :-1]
    assert np.array_equal(labels, np.where(following < SEPARATOR, following, IGNORED_LABEL))
    assert np.array_equal(episodes.score_mask, episodes.labels != IGNORED_LABEL)
    assert episodes.score_mask[episodes.input_ids == SEPARATOR].mean() > 0.9  # all but those at the cut of a row
    assert not episodes.score_mask[episodes.input_ids == PADDING].any()


def test_true_distributions_are_even_over_the_edges_and_hold_the_label(splits):
    episodes = splits["test"]
    asked = episodes.score_mask
    chances = episodes.target_probs[asked]
    assert chances.shape[-1] == VOCABULARY_SIZE
    assert np.allclose(chances.sum(-1), 1)
    assert np.allclose(chances[np.arange(len(chances)), episodes.labels[asked]], chances.max(-1))
    assert set((1 / chances.max(-1)).round().astype(int)) == {1, 2, 3}
    assert not episodes.target_probs[~asked].any()


def test_after_a_separator_the_start_state_speaks(splits):
    episodes = splits["test"]
    rows, columns = np.nonzero((episodes.input_ids == SEPARATOR) & episodes.score_mask)
    for row, column in zip(rows, columns, strict=True):
        automaton = episodes.automata[row]
        assert np.allclose(episodes.target_probs[row, column, :SEPARATOR], automaton.next_distribution(0))


def test_numbers_and_lengths_of_strings_keep_to_their_ranges():
    config = LanguageLearningConfig(train=0, validation=0, test=60, strings=(2, 4), string_length=(1, 3), length=20)
    lengths, counts = set(), set()
    for ids in language_learning_episodes(config)["test"].input_ids:
        strings = "".join("x|."[max(0, token - SEPARATOR + 1)] for token in ids).rstrip(".").split("|")
        counts.add(len(strings))
        lengths |= {len(string) for string in strings}
    assert counts == {2, 3, 4}
    assert lengths == {1, 2, 3}


def test_a_seed_gives_one_data_set(splits):
    again = language_learning_episodes(CONFIG)
    assert all(np.array_equal(again[name].input_ids, splits[name].input_ids) for name in splits)


def test_fewer_training_rows_are_the_first_of_more(splits):
    from dataclasses import replace

    fewer = language_learning_episodes(replace(CONFIG, train=7))
    assert np.array_equal(fewer["train"].input_ids, splits["train"].input_ids[:7])
    assert np.array_equal(fewer["test"].input_ids, splits["test"].input_ids)


def test_rows_survive_an_arrow_table(splits, tmp_path):
    datasets = pytest.importorskip("datasets")
    splits["test"].to_dataset().save_to_disk(tmp_path / "table")
    read = Episodes.from_dataset(datasets.load_from_disk(tmp_path / "table"))
    assert np.array_equal(read.input_ids, splits["test"].input_ids)
    assert np.array_equal(read.labels, splits["test"].labels)
    assert np.array_equal(read.target_probs, splits["test"].target_probs)


def test_the_data_card_says_ranges_and_the_entropy_floor(splits):
    card = data_card(CONFIG, splits)
    chances = splits["test"].target_probs[splits["test"].score_mask].max(-1)
    assert "1 to 3 equally likely edges" in card
    assert "1 to 9 symbols" in card
    assert f"| {-np.log(chances).mean():.3f} |" in next(line for line in card.splitlines() if "| test" in line)


def test_more_languages_than_there_are_is_an_error():
    config = LanguageLearningConfig(train=500, states=(2, 2), alphabet=(1, 1), out_degree=(1, 1), length=20)
    with pytest.raises(PerplabError, match="no new language"):
        language_learning_episodes(config)


def test_impossible_sizes_are_refused():
    with pytest.raises(PerplabError, match="string_length from 0"):
        LanguageLearningConfig(string_length=(0, 3))
    with pytest.raises(PerplabError, match="rows of 1"):
        LanguageLearningConfig(length=1)
