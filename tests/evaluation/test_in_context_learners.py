import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.evaluation.language_learning import (
    InContextNGram,
    LearnedNGramMixer,
    PairHMM,
    score_predictor,
    score_probabilities,
)
from perplab.evaluation.language_learning.pair_hmm import _backward, _forward, _stacked
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.automata import Automaton
from perplab.text.synthetic.language_learning import (
    LETTERS,
    SEPARATOR,
    VOCABULARY_SIZE,
    Episodes,
    LanguageLearningConfig,
    language_learning_episodes,
)

SMOOTHINGS = ("none", "add-one", "uniform", "backoff", "kneser-ney")


@st.composite
def episode(draw):
    """Tokens of three kinds and separators, also several in a row."""
    return np.array(draw(st.lists(st.sampled_from((0, 1, 2, SEPARATOR)), min_size=1, max_size=25)))


@pytest.fixture(scope="module")
def splits():
    config = LanguageLearningConfig(train=60, validation=0, test=20, string_length=(1, 9), length=90)
    return language_learning_episodes(config)


def windows(ids, order):
    """(context, follower or None) of every place so far, each string begun by marks."""
    found = []
    for string in "".join("abc|"[min(token, 3)] for token in ids).split("|"):
        padded = "^" * order + string
        ends = range(order, len(padded) + 1)
        found += [(padded[end - order + 1 : end], padded[end] if end < len(padded) else None) for end in ends]
    return found


def by_strings(ids, order, smoothing):
    """What follows `ids`, letter to probability, by comparing strings."""
    letters = "abc" + "".join(chr(ord("A") + place) for place in range(len(LETTERS) - 3))
    seen = {token for token in "abc" if ord(token) - ord("a") in ids}
    current = {n: windows(ids, n)[-1][0] for n in range(1, order + 1)}
    counts = {n: Counter(follower for context, follower in windows(ids, n) if context == current[n]) for n in current}
    followed = {n: Counter({key: value for key, value in counts[n].items() if key}) for n in current}
    even = dict.fromkeys(letters, 1 / len(letters))

    def normalised(weights):
        total = sum(weights.values())
        return {letter: weights.get(letter, 0) / total for letter in letters} if total else even

    def evened(weights, keys):
        mean = sum(weights[key] for key in keys) / len(keys) if keys else 0
        return {**weights, **dict.fromkeys(keys, mean)}

    if smoothing == "none":
        return normalised(followed[order])
    if smoothing == "add-one":
        return normalised({letter: followed[order][letter] + 1 for letter in letters})
    if smoothing == "kneser-ney":
        result = even
        for n in range(1, order + 1):
            used = followed[n]
            if n < order:
                longer = {window for window in windows(ids, n + 1) if window[1] and window[0][1:] == current[n]}
                used = Counter(follower for _, follower in longer)
            total = sum(used.values())
            if total:
                freed = 0.75 * len(used)
                result = {x: (max(used[x] - 0.75, 0) + freed * result[x]) / total for x in letters}
        return result
    result = normalised(followed[1])
    if smoothing == "uniform":
        result = evened(result, followed[1].keys())
    for n in range(2, order + 1):
        direct = {letter: count / sum(counts[n].values()) for letter, count in followed[n].items()}
        left = 1 - sum(direct.values())
        rest = {letter: result[letter] for letter in seen if letter not in direct}
        if smoothing == "uniform":
            direct = evened(direct, direct.keys())
        total = sum(rest.values())
        result = normalised(direct | {letter: left * chance / total for letter, chance in rest.items()})
    return result


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@settings(max_examples=25)
@given(episode(), st.integers(1, 4))
def test_probabilities_are_those_that_comparing_strings_gives(smoothing, ids, order):
    predicted = InContextNGram(order, smoothing)(ids)
    for end in range(len(ids)):
        expected = by_strings(ids[: end + 1], order, smoothing)
        assert np.allclose(predicted[end, :3], [expected[letter] for letter in "abc"], atol=1e-12)
    assert np.allclose(predicted.sum(-1), 1)
    assert not predicted[:, SEPARATOR:].any()


def test_order_one_is_the_frequency_of_each_symbol():
    ids = np.random.default_rng(0).integers(0, 5, 40)
    counts = np.cumsum(np.eye(VOCABULARY_SIZE)[ids], axis=0)
    assert np.allclose(InContextNGram(1, "none")(ids), counts / np.arange(1, 41)[:, None])


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_future_changes_nothing(smoothing):
    ids = np.random.default_rng(0).integers(0, 4, 30)
    predicted = InContextNGram(3, smoothing)(ids)
    assert np.allclose(InContextNGram(3, smoothing)(ids[:20]), predicted[:20], atol=1e-12)


def test_even_sharing_learns_a_language_that_the_last_symbol_decides():
    table = np.full((3, len(LETTERS)), -1)
    for state, (one, other) in enumerate(((1, 2), (0, 2), (0, 1))):
        table[state, [one, other]] = one, other  # symbol k leads to state k
    automaton = Automaton(table)
    ids, states = automaton.sample(np.random.default_rng(0), 1501)
    rows = Episodes((automaton,), ids[None, :-1], ids[None, 1:], states[None, 1:])
    distances = []
    for first in (0, 1300):
        labels = np.where(np.arange(1500) >= first, rows.labels, IGNORED_LABEL)
        asked = Episodes(rows.automata, rows.input_ids, labels, rows.states)
        distances.append(score_predictor(InContextNGram(2, "uniform"), asked).figures["TVD"])
    assert distances[1] < 0.003 < distances[0]


def test_no_order_and_no_such_smoothing_are_refused():
    with pytest.raises(PerplabError, match="order 0"):
        InContextNGram(0)
    with pytest.raises(PerplabError, match="witten-bell"):
        InContextNGram(2, "witten-bell")


@pytest.mark.parametrize(("features", "rate"), [("raw", 1e-1), ("normalised", 1e-2), ("binary", 1e-2)])
def test_a_learned_mixture_comes_to_beat_the_unigrams(features, rate, splits):
    mixer = LearnedNGramMixer(features=features, hidden_size=32, epochs=20, learning_rate=rate).fit(splits["train"])
    learned = score_predictor(mixer, splits["test"]).figures
    unigrams = score_predictor(InContextNGram(1, "kneser-ney"), splits["test"]).figures
    assert learned["NLL"] < unigrams["NLL"] - 0.1
    assert learned["DFA accuracy"] > unigrams["DFA accuracy"] + 0.1


def test_a_seed_gives_one_mixture(splits):
    few = splits["train"][:8]
    mixers = [LearnedNGramMixer(hidden_size=8, epochs=2, seed=3).fit(few) for _ in range(2)]
    assert np.array_equal(*(mixer(few.input_ids[0]) for mixer in mixers))


def strings():
    random = np.random.default_rng(1)
    return [random.integers(0, 3, length) for length in (1, 4, 7, 2)]


def test_each_iteration_raises_the_likelihood():
    model = PairHMM(4, iterations=15, floor=0.0).fit(strings())
    steps = np.diff(model.log_likelihoods_)
    assert (steps >= -1e-8).all()
    assert steps[0] > 0.1


def test_backward_gives_the_likelihood_that_forward_gives():
    model = PairHMM(4, iterations=2).fit(strings())
    stacked = _stacked([strings()])
    forward, likelihood = _forward(model.parameters_, stacked)
    backward = _backward(model.parameters_, stacked)
    everywhere = (forward + backward).flatten(3).logsumexp(-1)
    assert torch.allclose(everywhere, likelihood[..., None].expand_as(everywhere), atol=1e-10)


def test_the_likelihood_is_the_sum_over_all_walks():
    string = np.array([0, 2, 1, 2])
    model = PairHMM(3, iterations=1).fit([string])
    initial, transition, emission = (
        each[0].exp() for each in (model.parameters_.initial, model.parameters_.transition, model.parameters_.emission)
    )
    total = 0.0
    for walk in itertools.product(range(3), repeat=4):
        chance, edge = initial[walk[0]] * emission[0, walk[0], string[0]], (0, walk[0])
        for target, symbol in zip(walk[1:], string[1:], strict=True):
            chance = chance * transition[(*edge, target)] * emission[edge[1], target, symbol]
            edge = (edge[1], target)
        total += float(torch.nan_to_num(chance))
    assert model.log_likelihoods_[-1] == pytest.approx(np.log(total), abs=1e-10)


def test_no_edge_goes_from_a_state_to_itself():
    model = PairHMM(3).fit(strings())
    assert model.parameters_.initial[0, 0] == -torch.inf
    assert (model.parameters_.transition[0].diagonal(dim1=1, dim2=2) == -torch.inf).all()
    assert (model.parameters_.emission[0].diagonal(dim1=0, dim2=1) == -torch.inf).all()


def test_predictions_come_from_the_prefix_alone_and_sum_to_one():
    ids = np.array([0, 1, SEPARATOR, 1, 0, 1, SEPARATOR, 0])
    model = PairHMM(3, iterations=3)
    predicted = model(ids)
    assert np.allclose(predicted.sum(-1), 1)
    assert np.allclose(model(ids[:5]), predicted[:5], atol=1e-12)


def test_baum_welch_learns_what_an_alternating_language_allows():
    ids = np.array([0, 1, 0, 1, 0, SEPARATOR, 0, 1, 0, 1, 0, 1, SEPARATOR, 0, 1, 0])
    predicted = PairHMM(3, iterations=20)(ids)
    assert predicted[-1, 1] > 0.9
    assert predicted[6, 1] > 0.9
    assert predicted[12, 0] > 0.9


def test_learners_come_near_the_language_itself(splits):
    oracle = score_probabilities(splits["test"].target_probs, splits["test"]).figures
    accuracies = [score_predictor(InContextNGram(n), splits["test"]).figures["DFA accuracy"] for n in (1, 2, 3)]
    assert accuracies[0] + 0.1 < accuracies[1] < accuracies[2] < oracle["DFA accuracy"] == 1


def test_impossible_models_are_refused():
    with pytest.raises(PerplabError, match="1 states"):
        PairHMM(1)
    with pytest.raises(PerplabError, match="no symbol"):
        PairHMM(3).fit([np.array([], dtype=int)])
    with pytest.raises(PerplabError, match="unknown features"):
        LearnedNGramMixer(features="tf-idf")
