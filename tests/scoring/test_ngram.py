from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.scoring.ngram import NGramModel

VOCABULARY, BOS = 7, 6


class DictionaryKneserNey:
    """The textbook's formulas, one n-gram at a time."""

    def __init__(self, documents, vocabulary, bos, order):
        self.vocabulary, self.bos, self.order = vocabulary, bos, order
        raw = Counter(
            gram[order - length :]
            for length in range(1, order + 1)
            for document in documents
            for gram in self.grams(document)
        )
        self.counts = {order: {gram: count for gram, count in raw.items() if len(gram) == order}}
        for length in range(order - 1, 0, -1):
            lefts = defaultdict(set)
            for gram in raw:
                if len(gram) == length + 1:
                    lefts[gram[1:]].add(gram[0])
            self.counts[length] = {gram: len(left) for gram, left in lefts.items()}
        self.discounts = {length: self.three_discounts(counts) for length, counts in self.counts.items()}

    def grams(self, document):
        padded = [self.bos] * (self.order - 1) + list(document)
        return [tuple(padded[i : i + self.order]) for i in range(len(document))]

    @staticmethod
    def three_discounts(counts):
        n1, n2, n3, n4 = (sum(count == value for count in counts.values()) for value in (1, 2, 3, 4))
        if n1 and n2 and n3:
            y = n1 / (n1 + 2 * n2)
            discounts = {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
            if all(0 < discount < count for count, discount in discounts.items()):
                return discounts
        return {1: 0.5, 2: 1.0, 3: 1.5}

    def probability(self, context, token):
        if context is None:
            return 1 / self.vocabulary
        below = self.probability(context[1:] if context else None, token)
        counts, discounts = self.counts[len(context) + 1], self.discounts[len(context) + 1]
        followers = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not followers:
            return below
        freed = sum(discounts[min(count, 3)] for count in followers.values())
        kept = followers.get(token, 0) - discounts.get(min(followers.get(token, 0), 3), 0)
        return (kept + freed * below) / sum(followers.values())

    def nll(self, document):
        return [-np.log(self.probability(gram[:-1], gram[-1])) for gram in self.grams(document)]


def random_documents(seed, number, length, vocabulary=VOCABULARY):
    """Documents of uneven lengths whose tokens are unevenly frequent."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(vocabulary, 0.5))
    return [generator.choice(vocabulary, size=generator.integers(1, length), p=weights) for _ in range(number)]


def distribution(model, context):
    """Probabilities of every token after a context."""
    return np.exp([-model.nll(np.array([*context, token]))[-1] for token in range(model.vocabulary_size)])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [6, 60])
def test_costs_equal_those_of_a_dictionary_implementation(order, length):
    documents = random_documents(order, 12, length)
    unseen = random_documents(100 + order, 6, length)
    model = NGramModel(VOCABULARY, BOS, order).fit(documents)
    definition = DictionaryKneserNey(documents, VOCABULARY, BOS, order)
    for document in documents + unseen:
        np.testing.assert_allclose(model.nll(document), definition.nll(document), rtol=1e-12)


def test_the_dictionary_comparison_covers_estimated_and_fallback_discounts():
    sets = [
        DictionaryKneserNey(random_documents(order, 12, length), VOCABULARY, BOS, order).discounts.values()
        for order, length in product([1, 2, 3, 5], [6, 60])
    ]
    fallback = [discounts == {1: 0.5, 2: 1.0, 3: 1.5} for each in sets for discounts in each]
    assert any(fallback)
    assert not all(fallback)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_after_seen_and_unseen_contexts_sum_to_one(order):
    model = NGramModel(VOCABULARY, BOS, order).fit(random_documents(0, 5, 20, vocabulary=VOCABULARY - 2))
    for context in [(), (0,), (VOCABULARY - 2,), *product(range(VOCABULARY), repeat=3)]:
        assert distribution(model, context).sum() == pytest.approx(1.0, abs=1e-12)


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1).filter(lambda texts: any(map(len, texts))),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_any_corpus_gives_a_proper_distribution_and_no_infinite_cost(texts, order):
    model = NGramModel(5, 4, order).fit(np.array(text, dtype=np.int64) for text in texts)
    probabilities = distribution(model, texts[0][:3])
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


def test_counts_without_a_once_seen_ngram_leave_mass_for_the_unseen():
    model = NGramModel(4, 0, 2).fit([np.array([1, 2] * 50)])
    assert np.isfinite(model.nll(np.array([3, 3, 1, 1]))).all()


def test_order_one_is_the_smoothed_unigram_of_plain_counts():
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 0])  # counts of counts 4, 2, 1, 1
    tokens = np.repeat(np.arange(9), counts)
    model = NGramModel(9, 8, order=1).fit([tokens[::2], tokens[1::2]])
    discounts = np.array([0, 0.5, 1.25, 1.0])
    taken = discounts[np.minimum(counts, 3)]
    expected = (counts - taken) / counts.sum() + taken.sum() / counts.sum() / 9
    np.testing.assert_allclose(np.exp(-model.nll(np.arange(9))), expected, rtol=1e-12)


def markov_chain(tokens, transitions, seed):
    """A sample of a chain in which each token depends on the two before it, and the chain's own cost of each token."""
    generator = np.random.default_rng(seed)
    cumulative = transitions.cumsum(-1)
    sample = [0, 0]
    for draw in generator.random(tokens):
        sample.append(int(np.searchsorted(cumulative[sample[-2], sample[-1]], draw)))
    sample = np.array(sample)
    return sample[2:], -np.log(transitions[sample[:-2], sample[1:-1], sample[2:]])


def test_cost_on_a_second_order_chain_approaches_its_entropy_rate():
    transitions = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=(5, 5))
    heldout, own_costs = markov_chain(20_000, transitions, seed=1)
    excess = {}
    for tokens in (1_000, 100_000):
        train, _ = markov_chain(tokens, transitions, seed=2)
        excess[tokens] = NGramModel(5, 0, 3).fit([train]).nll(heldout).mean() - own_costs.mean()
    assert 0 < excess[100_000] < 0.002
    assert excess[100_000] < excess[1_000] / 10
    blind = NGramModel(5, 0, 2).fit([train]).nll(heldout).mean() - own_costs.mean()
    assert blind > 0.1  # one token of context cannot know the chain


def test_a_longer_order_than_the_text_needs_costs_little():
    transitions = np.random.default_rng(3).dirichlet(np.full(4, 0.5), size=(4, 4))
    train, _ = markov_chain(50_000, transitions, seed=4)
    heldout, own_costs = markov_chain(10_000, transitions, seed=5)
    assert NGramModel(4, 0, 5).fit([train]).nll(heldout).mean() - own_costs.mean() < 0.03


def test_documents_do_not_see_one_another():
    documents = random_documents(7, 8, 15)
    forwards, backwards = (NGramModel(VOCABULARY, BOS, 4).fit(texts) for texts in (documents, documents[::-1]))
    for document in documents:
        np.testing.assert_allclose(forwards.nll(document), backwards.nll(document), rtol=1e-12)


def test_an_empty_document_has_no_costs():
    model = NGramModel(VOCABULARY, BOS).fit(random_documents(0, 3, 9))
    assert model.nll(np.array([], dtype=np.int64)).shape == (0,)


def test_bad_input_is_refused():
    with pytest.raises(PerplabError, match="order 0"):
        NGramModel(VOCABULARY, BOS, 0)
    with pytest.raises(PerplabError, match="no token"):
        NGramModel(VOCABULARY, BOS).fit([np.array([], dtype=np.int64)])
    with pytest.raises(PerplabError, match=f"vocabulary of {VOCABULARY}"):
        NGramModel(VOCABULARY, BOS).fit([np.array([0, VOCABULARY])])
