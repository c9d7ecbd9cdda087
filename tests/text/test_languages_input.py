import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.text.synthetic.languages import HMM, PCFG, Dyck, LogBilinear, language_characters, language_corpus

CYCLE = HMM(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]]), np.eye(2), 4)
"""The one sentence 0 1 0 1."""


def test_impossible_sentences_are_named():
    for read in (CYCLE.next_token, CYCLE.masked_token, CYCLE.hidden_labels):
        with pytest.raises(PerplabError, match="sentence 1 has probability 0"):
            read([[0, 1, 0, 1], [0, 0, 0, 1]])
    assert CYCLE.log_likelihood([[0, 1, 0, 1], [0, 0, 0, 1]]).tolist() == [0.0, -np.inf]


def test_impossible_brackets_and_trees_are_named():
    with pytest.raises(PerplabError, match="probability 0"):
        Dyck(4).next_token([[0, 1, 1, 0]])
    grammar = PCFG.random(symbols=2, words=2, depth=1, seed=0)
    with pytest.raises(PerplabError, match="no parse"):
        grammar.hidden_labels([[2, 0]])


def test_a_gap_may_hold_what_the_language_never_says():
    assert np.exp(CYCLE.conditional([[0, 0, 0, 1]], 1)).tolist() == [[0.0, 1.0]]


def test_symbols_outside_the_vocabulary_are_refused():
    with pytest.raises(PerplabError, match="symbols from 0 to 2"):
        CYCLE.next_token([[0, 1, 0, 2]])
    with pytest.raises(PerplabError, match="shape"):
        CYCLE.next_token([[0, 1]])


def test_symbols_that_never_occur_are_refused():
    with pytest.raises(PerplabError, match="symbol 1 never occurs"):
        HMM(np.ones(1), np.ones((1, 1)), np.array([[1.0, 0.0]]), 4)
    with pytest.raises(PerplabError, match="symbol 1 never occurs"):
        HMM(np.array([1.0, 0.0]), np.eye(2), np.eye(2), 4)  # state 1 is never reached
    with pytest.raises(PerplabError, match="word 1 never occurs"):
        PCFG(np.ones(1), [np.ones((1, 1, 1))], [np.zeros((1, 2)), np.array([[1.0, 0.0]])])


def test_vocabularies_of_one_are_refused():
    for make in (
        lambda: HMM.random(states=2, symbols=1, length=4, seed=0),
        lambda: PCFG.random(symbols=2, words=1, depth=2, seed=0),
        lambda: LogBilinear.random(contexts=2, words=1, factors=1, seed=0),
    ):
        with pytest.raises(PerplabError, match="vocabulary of 1"):
            make()


def test_probabilities_that_do_not_sum_to_one_are_refused():
    with pytest.raises(PerplabError, match="emission probabilities"):
        HMM(np.ones(1), np.ones((1, 1)), np.array([[0.5, 0.4]]), 4)
    with pytest.raises(PerplabError, match="layer 1"):
        PCFG(np.ones(1), [np.ones((1, 1, 1))], [np.zeros((1, 2)), np.array([[0.5, 0.4]])])
    with pytest.raises(PerplabError, match="contexts"):
        LogBilinear(np.array([0.5, 0.6]), np.ones((2, 1)), np.ones((2, 1)))


def test_odd_brackets_are_refused():
    with pytest.raises(PerplabError, match="even length"):
        Dyck(5)


def test_an_entropy_of_one_sentence_has_no_error_and_is_refused():
    with pytest.raises(PerplabError, match="two or more"):
        CYCLE.entropy("causal", sentences=1)


def test_lines_of_a_corpus_are_the_sentences_of_its_seeds():
    language = HMM.random(states=3, symbols=5, length=8, seed=0)
    corpus = language_corpus(language, 10, seed=3, per_document=4)
    lines = [document.text.splitlines() for document in corpus]
    assert [len(document) for document in lines] == [4, 4, 2]
    first = language.draw(4, np.random.default_rng([3, 0]))
    assert lines[0] == ["".join(language_characters(5)[symbol] for symbol in row) for row in first]


def test_line_breaks_end_the_shorter_sentences_of_a_grammar():
    grammar = PCFG.random(symbols=3, words=4, depth=3, seed=0)
    (document,) = language_corpus(grammar, 50, seed=0)
    lengths = [len(line) for line in document.text.splitlines()]
    ids = grammar.draw(50, np.random.default_rng([0, 0]))
    assert lengths == (ids != grammar.end).sum(axis=1).tolist()
    assert set(document.text) <= {*language_characters(4), "\n"}


def test_corpora_of_other_languages_or_seeds_have_other_fingerprints():
    one, other = (HMM.random(states=3, symbols=5, length=8, seed=seed) for seed in (0, 1))
    prints = {
        language_corpus(language, sentences, seed=seed).fingerprint
        for language in (one, other, Dyck(8))
        for sentences in (5, 6)
        for seed in (0, 1)
    }
    assert len(prints) == 12
    assert language_corpus(one, 5, seed=0).fingerprint in prints


def test_characters_are_distinct_and_never_blank():
    characters = language_characters(2000)
    assert len(set(characters)) == 2000
    assert not any(character.isspace() for character in characters)
    with pytest.raises(PerplabError, match="as text"):
        language_characters(10**6)
