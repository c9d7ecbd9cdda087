import numpy as np
import pytest
import torch
from scipy.stats import norm

from perplab.errors import PerplabError
from perplab.laws.probes import LinearHead, hidden_features, linear_probe, lookup_features, one_hot, untrained
from perplab.text.synthetic.languages import HMM

LANGUAGE = HMM.random(states=4, symbols=6, length=8, seed=0)


def gaussian_classes(n, distance, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    return rng.standard_normal((n, 3)) + distance * (labels[:, None] - 0.5) * np.array([1.0, 0.0, 0.0]), labels


def test_separable_labels_are_all_found():
    features, labels = gaussian_classes(400, distance=40.0)
    assert linear_probe(features, labels).accuracy == 1.0


def test_accuracy_on_gaussian_classes_is_that_of_the_best_line():
    features, labels = gaussian_classes(4000, distance=2.0)
    probe = linear_probe(features, labels)
    assert probe.interval.low < norm.cdf(1.0) < probe.interval.high
    assert probe.interval.low < probe.accuracy < probe.interval.high


def test_labels_without_relation_are_found_by_chance():
    rng = np.random.default_rng(0)
    probe = linear_probe(rng.standard_normal((2000, 5)), rng.integers(4, size=2000))
    assert probe.interval.low < 0.25 < probe.interval.high
    assert probe.loss == pytest.approx(np.log(4), abs=0.02)


def test_scale_and_shift_of_features_change_nothing():
    features, labels = gaussian_classes(600, distance=2.0)
    one, other = (linear_probe(given, labels, seed=3) for given in (features, 100 * features - 7))
    assert one.loss == pytest.approx(other.loss, abs=1e-4)


def test_head_is_at_the_minimum_of_its_penalised_cost():
    features, labels = gaussian_classes(200, distance=1.0)
    inputs, targets = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    head = LinearHead(2, penalty=2.0).fit(inputs, targets)
    standardised = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0)
    residual = torch.softmax(head(inputs), dim=1) - torch.eye(2)[targets]
    assert abs(standardised.T @ residual + 2.0 * head.weight_).max() < 0.05  # of 200 examples
    assert abs(residual.sum(dim=0)).max() < 0.05


def test_a_head_that_was_fitted_goes_on_to_the_same_minimum():
    features, labels = gaussian_classes(200, distance=1.0)
    inputs, targets = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    moved = LinearHead(2).fit(inputs + torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)), targets)
    assert torch.allclose(moved.fit(inputs, targets)(inputs), LinearHead(2).fit(inputs, targets)(inputs), atol=1e-2)


def test_lookup_features_are_the_conditionals_side_by_side():
    ids = LANGUAGE.sample(5, 0)
    features = lookup_features(LANGUAGE, ids).reshape(5, 8, 6)
    assert features.sum(axis=-1) == pytest.approx(1.0)
    assert np.log(features[2, 3]) == pytest.approx(LANGUAGE.next_token(ids)[2, 3])
    masked = lookup_features(LANGUAGE, ids, "masked").reshape(5, 8, 6)
    assert np.log(masked[2, 3]) == pytest.approx(LANGUAGE.conditional(ids, 3)[2])


def test_one_hot_features_are_the_sentence():
    ids = LANGUAGE.sample(5, 0)
    assert (one_hot(ids, 6).reshape(5, 8, 6).argmax(axis=-1) == ids).all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hidden_features_of_a_sentence_do_not_depend_on_its_batch(tiny_model, family):
    model = tiny_model(family).train()
    ids = np.random.default_rng(0).integers(50, size=(300, 5))
    features = hidden_features(model, ids)
    assert features.shape == (300, 5 * 32)
    assert model.training
    assert np.allclose(features[290:], hidden_features(model, ids[290:]), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2"])
def test_an_untrained_model_has_the_shape_and_other_weights(tiny_model, family):
    model = tiny_model(family)
    one, same, other = (untrained(model, seed) for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert one.config.hidden_size == model.config.hidden_size


@pytest.mark.parametrize(
    ("features", "labels", "problem"),
    [
        (np.zeros((4, 2)), np.array([0, 1, 0]), "shape"),
        (np.zeros((4, 2)), np.zeros(4, dtype=int), "single label"),
        (np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), "not finite"),
        (np.zeros((1, 2)), np.zeros(1, dtype=int), "single label"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "held out"),
    ],
)
def test_examples_that_teach_nothing_are_refused(features, labels, problem):
    with pytest.raises(PerplabError, match=problem):
        linear_probe(features, labels)
