import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.text.synthetic.languages import HMM, PCFG, Dyck, LogBilinear

LANGUAGES = {
    "hmm": HMM.random(states=3, symbols=3, length=6, seed=0),
    "hmm with zeros": HMM(
        np.array([1.0, 0.0, 0.0]),
        np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.3, 0.7]]),
        np.array([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]]),
        5,
    ),
    "pcfg": PCFG.random(symbols=3, words=3, depth=2, seed=0, early=0.3, concentration=(1.0, 1.0)),
    "pcfg with zeros": PCFG.random(symbols=4, words=3, depth=2, seed=3, concentration=(0.05, 0.05)),
    "pcfg of uneven layers": PCFG(
        np.array([0.3, 0.7]),
        [np.full((2, 3, 3), 0.1), np.array([[[0.6]], [[0.2]], [[1.0]]])],
        [np.full((2, 2), 0.05), np.array([[0.1, 0.3], [0.8, 0.0], [0.0, 0.0]]), np.array([[0.25, 0.75]])],
    ),
    "dyck": Dyck(6),
    "dyck of two kinds": Dyck(6, kinds=2),
    "log-bilinear": LogBilinear.random(contexts=4, words=3, factors=2, seed=0),
}


def all_sentences(language):
    return np.array(list(itertools.product(range(language.vocab_size), repeat=language.length)))


def tabulated(language):
    """P of every sentence as an array with an axis for each position."""
    likelihood = np.exp(language.log_likelihood(all_sentences(language)))
    return likelihood.reshape((language.vocab_size,) * language.length)


def possible_sentences(language):
    ids = all_sentences(language)
    return ids[np.isfinite(language.log_likelihood(ids))]


@pytest.fixture(params=LANGUAGES)
def language(request):
    return LANGUAGES[request.param]


def test_probabilities_of_all_sentences_sum_to_one(language):
    assert tabulated(language).sum() == pytest.approx(1.0, abs=1e-10)


def test_next_token_equals_enumeration(language):
    table, ids = tabulated(language), possible_sentences(language)
    found = np.exp(language.next_token(ids))
    for time in range(language.length):
        begun = table.sum(axis=tuple(range(time + 1, language.length)))
        joint = begun[tuple(ids[:, before] for before in range(time))] if time else begun[None]
        assert abs(found[:, time] - joint / joint.sum(axis=-1, keepdims=True)).max() < 1e-10


def test_masked_token_equals_enumeration_whatever_stands_there(language):
    table, ids = tabulated(language), possible_sentences(language)
    rng = np.random.default_rng(0)
    for time in range(language.length):
        others = tuple(ids[:, other] for other in range(language.length) if other != time)
        joint = np.moveaxis(table, time, -1)[others]
        gap = ids.copy()
        gap[:, time] = rng.integers(language.vocab_size, size=len(ids))
        found = np.exp(language.conditional(gap, time))
        assert abs(found - joint / joint.sum(axis=-1, keepdims=True)).max() < 1e-10
        assert abs(np.exp(language.masked_token(ids)[:, time]) - found).max() < 1e-12


def test_every_gap_tells_the_same_likelihood_as_the_prefixes(language):
    ids = possible_sentences(language)
    joint = np.take_along_axis(language._in_context(ids), ids[..., None], axis=-1)[..., 0]
    assert abs(joint - language.log_likelihood(ids)[:, None]).max() < 1e-10


def test_chain_rule_gives_the_likelihood(language):
    ids = possible_sentences(language)
    chained = np.take_along_axis(language.next_token(ids), ids[..., None], axis=-1).sum(axis=(1, 2))
    assert abs(chained - language.log_likelihood(ids)).max() < 1e-10


def test_entropy_is_the_mean_cost_over_the_enumeration(language):
    ids = possible_sentences(language)
    weights = np.exp(language.log_likelihood(ids))
    for context, log_probabilities in (("causal", language.next_token(ids)), ("masked", language.masked_token(ids))):
        costs = -np.take_along_axis(log_probabilities, ids[..., None], axis=-1)[..., 0].mean(axis=1)
        entropy = language.entropy(context, sentences=2000)
        assert entropy.value == pytest.approx(weights @ costs, abs=4 * entropy.standard_error + 1e-10)


def test_samples_have_the_likelihood_of_the_language(language):
    sample = language.sample(20_000, seed=1)
    shape = (language.vocab_size,) * language.length
    counts = np.bincount(np.ravel_multi_index(sample.T, shape), minlength=np.prod(shape))
    expected = 20_000 * tabulated(language).ravel()
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    degrees = often.sum() - 1
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5 + 5


def test_a_seed_draws_the_same_sentences(language):
    assert (language.sample(50, 3) == language.sample(50, 3)).all()
    assert (language.sample(50, 3) != language.sample(50, 4)).any()


@pytest.mark.parametrize("context", ["masked", "causal"])
@pytest.mark.parametrize(
    "language",
    [HMM.random(states=8, symbols=20, length=16, seed=2), PCFG.random(symbols=5, words=20, depth=3, seed=2)],
    ids=["hmm", "pcfg"],
)
def test_entropy_of_long_sentences_is_the_monte_carlo_mean_of_their_cost(language, context):
    ids = language.sample(1000, seed=5)
    of = {"masked": language.masked_token, "causal": language.next_token}[context]
    costs = -np.take_along_axis(of(ids), ids[..., None], axis=-1)[..., 0].mean(axis=1)
    entropy = language.entropy(context, sentences=1000, seed=6)
    error = (costs.var(ddof=1) / len(ids) + entropy.standard_error**2) ** 0.5
    assert entropy.value == pytest.approx(costs.mean(), abs=4 * error)


def test_entropy_of_conditionals_is_surer_than_the_mean_cost():
    language = HMM.random(states=8, symbols=20, length=16, seed=2)
    ids = language.sample(1000, seed=5)
    costs = -language.log_likelihood(ids) / language.length
    assert language.entropy("causal", sentences=1000).standard_error < costs.std() / len(ids) ** 0.5 / 2


@given(states=st.integers(1, 4), symbols=st.integers(2, 4), length=st.integers(2, 5), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_forward_and_backward_likelihoods_of_any_hmm_agree(states, symbols, length, seed):
    language = HMM.random(states=states, symbols=symbols, length=length, seed=seed)
    ids = language.sample(5, seed)
    backward = language.initial * np.exp(language._remaining(ids)[:, 0]) * language.emission.T[ids[:, 0]]
    assert np.log(backward.sum(axis=1)) == pytest.approx(language.log_likelihood(ids), abs=1e-10)


def test_hidden_states_of_an_hmm_are_the_likeliest_of_all_paths():
    language = LANGUAGES["hmm"]
    ids = language.sample(20, 0)
    occupied = np.zeros((20, language.length, language.states))
    for path in itertools.product(range(language.states), repeat=language.length):
        likelihood = language.initial[path[0]] * language.emission[path, ids].prod(axis=1)
        likelihood = likelihood * np.prod([language.transition[one, two] for one, two in itertools.pairwise(path)])
        occupied[:, np.arange(language.length), path] += likelihood[:, None]
    posterior = occupied / occupied.sum(axis=-1, keepdims=True)
    assert abs(np.exp(language.log_posterior(ids)) - posterior).max() < 1e-10
    assert (language.hidden_labels(ids) == posterior.argmax(axis=-1)).all()


def test_labels_of_a_pcfg_are_the_likeliest_non_terminals_of_its_spans():
    grammar = LANGUAGES["pcfg"]

    def inside(layer, symbol, words):
        if len(words) == 1:
            return grammar.emission[layer][symbol, words[0]]
        if layer == len(grammar.rules):
            return 0.0
        return sum(
            grammar.rules[layer][symbol, left, right]
            * inside(layer + 1, left, words[:split])
            * inside(layer + 1, right, words[split:])
            for split in range(1, len(words))
            for left in range(3)
            for right in range(3)
        )

    ids = grammar.sample(30, 0)
    for row, labels in zip(ids.tolist(), grammar.hidden_labels(ids).tolist(), strict=True):
        words = [word for word in row if word != grammar.end]
        spans = [words[: max(1, len(words) // parts)] for parts in (1, 2, 4)]
        found = [[inside(layer, symbol, span) for layer in range(3) for symbol in range(3)] for span in spans]
        assert labels == [int(np.argmax(of_span)) for of_span in found]


def test_open_brackets_are_counted_and_all_closed_in_the_end():
    language = Dyck(10, kinds=2)
    depth = language.hidden_labels(language.sample(100, 0))
    assert depth.min() == 0
    assert (depth[:, -1] == 0).all()


def test_dyck_words_are_counted_by_catalan_numbers():
    assert np.exp(Dyck(12).log_words) == pytest.approx(132)
    assert np.exp(Dyck(8, kinds=3).log_words) == pytest.approx(14 * 3**4)


def test_unbalanced_minimisers_are_the_same_bigrams():
    language = LogBilinear.random(contexts=8, words=6, factors=6, seed=0)
    for scale in (1.0, 3.0, 0.2):
        contexts, words = language.minimiser(scale)
        logits = contexts @ words.T
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert abs(probabilities - np.exp(language.log_conditional)).max() < 1e-12
