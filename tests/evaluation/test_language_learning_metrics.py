import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.evaluation.language_learning import (
    divergence,
    entropy,
    is_legal,
    score_model,
    score_predictor,
    score_probabilities,
    total_variation,
)
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.text.packing import IGNORED_LABEL
from perplab.text.synthetic.language_learning import (
    PADDING,
    SEPARATOR,
    VOCABULARY_SIZE,
    Episodes,
    LanguageLearningConfig,
    language_learning_episodes,
)


@pytest.fixture(scope="module")
def episodes():
    config = LanguageLearningConfig(train=0, validation=0, test=12, string_length=(1, 9), length=80)
    return language_learning_episodes(config)["test"]


def distributions(seed, count=20):
    return np.random.default_rng(seed).dirichlet(np.full(VOCABULARY_SIZE, 0.3), (2, count))


def test_the_languages_themselves_are_always_legal_and_cost_the_log_of_the_out_degree(episodes):
    figures = score_probabilities(episodes.target_probs, episodes).figures
    degrees = (episodes.target_probs > 0).sum(-1)[episodes.score_mask]
    assert figures["DFA accuracy"] == 1
    assert figures["TVD"] == 0
    assert figures["KL"] == pytest.approx(0, abs=1e-6)
    assert figures["NLL"] == pytest.approx(np.log(degrees).mean(), abs=1e-6)
    assert figures["floor"] == pytest.approx(np.log(degrees).mean(), abs=1e-6)


def test_even_probabilities_are_as_far_off_as_the_out_degree_says(episodes):
    even = np.full(episodes.target_probs.shape, 1 / VOCABULARY_SIZE)
    degrees = (episodes.target_probs > 0).sum(-1)
    distance = total_variation(even, episodes.target_probs.astype(float))[episodes.score_mask]
    assert np.allclose(distance, 1 - degrees[episodes.score_mask] / VOCABULARY_SIZE)
    assert score_probabilities(even, episodes).figures["NLL"] == pytest.approx(np.log(VOCABULARY_SIZE))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_total_variation_is_a_distance_from_zero_to_one(seed):
    first, second = distributions(seed)
    distance = total_variation(first, second)
    assert ((distance >= 0) & (distance <= 1)).all()
    assert np.array_equal(distance, total_variation(second, first))
    assert np.allclose(distance, [max(np.abs((a - b)[a > b].sum()), 0) for a, b in zip(first, second, strict=True)])
    assert not total_variation(first, first).any()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_divergence_is_what_an_expected_cost_exceeds_the_entropy_by(seed):
    first, second = distributions(seed)
    assert np.allclose(divergence(first, second) + entropy(second), -(second * np.log(first)).sum(-1))
    assert (divergence(first, second) >= -1e-12).all()


def test_a_separator_is_never_legal(episodes):
    separators = np.zeros(episodes.target_probs.shape)
    separators[..., SEPARATOR] = 1
    assert not is_legal(separators, episodes.target_probs)[episodes.score_mask].any()
    assert score_probabilities(separators, episodes).figures["TVD"] == pytest.approx(1)


def test_accuracies_by_out_degree_average_to_the_whole(episodes):
    guesses = np.random.default_rng(0).dirichlet(np.ones(VOCABULARY_SIZE), episodes.input_ids.shape)
    scores = score_probabilities(guesses, episodes)
    counts = sum(scores.legal_by_degree.values()).sum(0)
    assert counts[1] == scores.positions.sum()
    assert counts[0] / counts[1] == pytest.approx(scores.figures["DFA accuracy"])
    assert set(scores.legal_by_degree) == {1, 2, 3}


def test_what_is_predicted_where_nothing_is_asked_does_not_matter(episodes):
    guesses = np.random.default_rng(0).dirichlet(np.ones(VOCABULARY_SIZE), episodes.input_ids.shape)
    others = np.where(episodes.score_mask[..., None], guesses, 1 / VOCABULARY_SIZE)
    assert score_probabilities(guesses, episodes).figures == score_probabilities(others, episodes).figures


def test_more_padding_changes_no_figure(episodes):
    wider = Episodes(
        episodes.automata,
        np.pad(episodes.input_ids, ((0, 0), (0, 7)), constant_values=PADDING),
        np.pad(episodes.labels, ((0, 0), (0, 7)), constant_values=IGNORED_LABEL),
        np.pad(episodes.states, ((0, 0), (0, 7)), constant_values=-1),
    )
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = DecoderForCausalLM(config)
    narrow, wide = (score_model(model, each, batch=5).figures for each in (episodes, wider))
    assert narrow == pytest.approx(wide, rel=1e-5)
    with torch.no_grad():
        logits = [model(torch.from_numpy(np.ascontiguousarray(each.input_ids))).logits for each in (episodes, wider)]
    losses = [
        torch.nn.functional.cross_entropy(
            each.flatten(0, 1), torch.from_numpy(np.ascontiguousarray(rows.labels)).flatten(), ignore_index=-100
        ).item()
        for each, rows in zip(logits, (episodes, wider), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(narrow["NLL"], rel=1e-5)


def test_a_predictor_sees_one_episode_at_a_time(episodes):
    seen = []

    def predictor(ids):
        seen.append(ids)
        return np.full((len(ids), VOCABULARY_SIZE), 1 / VOCABULARY_SIZE)

    even = score_predictor(predictor, episodes).figures
    assert np.array_equal(np.stack(seen), episodes.input_ids)
    assert even["NLL"] == pytest.approx(np.log(VOCABULARY_SIZE))


def test_intervals_resample_automata(episodes):
    guesses = np.random.default_rng(0).dirichlet(np.ones(VOCABULARY_SIZE), episodes.input_ids.shape)
    scores = score_probabilities(guesses, episodes)
    interval = scores.interval("TVD")
    assert interval.low < scores.figures["TVD"] < interval.high
    with pytest.raises(PerplabError, match="two documents"):
        score_probabilities(guesses[:1], episodes[:1]).interval("TVD")
