from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("geoopt")

from perplab.training.hyperbolic import (
    GraphConfig,
    LorentzEncoder,
    LorentzLinear,
    branching_tree,
    karate_club,
    lorentz_mean,
    preferential_attachment,
    train_links,
    train_nodes,
)
from perplab.training.hyperbolic.learning import f1, neighbours, roc_auc
from perplab.training.hyperbolic.lorentz import LORENTZ, from_features, on_manifold, squared_distance
from perplab.training.low_rank import LowRankConfig, apply_low_rank, merge_low_rank

METHODS = ["lora", "relora", "galore", "sst"]


def random_points(count, dimension, scale=1.0, seed=0):
    torch.manual_seed(seed)
    return on_manifold(scale * torch.randn(count, dimension))


def off_manifold(points):
    """By how much -x_0^2 + |space|^2 misses -1, against the size of its terms."""
    wide = points.double()
    miss = wide[..., 1:].square().sum(-1) - wide[..., 0].square() + 1
    return (miss / wide[..., 0].square()).abs().max().item()


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 100.0])
def test_every_layer_returns_points_of_the_manifold(scale):
    points = random_points(50, 9, scale)
    layer = LorentzLinear(10, 6)
    weights = neighbours(np.array([[i, i + 1] for i in range(49)]), 50)
    for output in (points, layer(points), lorentz_mean(weights, points), from_features(points[:, 1:] * 0.01)):
        assert off_manifold(output) < 1e-5
        assert (output[:, 0] >= 1).all()
    assert layer(points).shape == (50, 6)


def test_gradients_are_finite_at_and_near_the_origin():
    for scale in (0.0, 1e-20, 1e-6):
        space = (scale * torch.randn(5, 4)).requires_grad_()
        encoder = LorentzEncoder(4, 3, 2)
        with torch.no_grad():
            for layer in encoder.layers:
                layer.linear.weight[1:] *= scale  # the product's space is at the origin too
        points = encoder(space, torch.full((5, 5), 0.2))
        squared_distance(points[:, None], points).sum().backward()
        for parameter in (space, *encoder.parameters()):
            assert torch.isfinite(parameter.grad).all()


def test_linear_layer_starts_with_no_weight_on_time():
    layer = LorentzLinear(10, 6)
    assert (layer.linear.weight[:, 0] == 0).all()
    assert layer.linear.weight[:, 1:].abs().max() <= 6**-0.5


def test_time_of_a_linear_layer_is_a_sigmoid_of_its_first_number():
    points, layer = random_points(50, 9), LorentzLinear(10, 6)
    product = layer.linear(points)
    expected = 10 * torch.sigmoid(product[:, 0]) + 1.1
    torch.testing.assert_close(layer(points)[:, 0], expected)
    cosine = torch.nn.functional.cosine_similarity(layer(points)[:, 1:], product[:, 1:])
    torch.testing.assert_close(cosine, torch.ones(50))


def test_mean_of_one_point_is_the_point_and_of_two_lies_midway():
    points = random_points(2, 5)
    torch.testing.assert_close(lorentz_mean(torch.eye(2), points), points, rtol=1e-4, atol=1e-5)
    middle = lorentz_mean(torch.tensor([[0.5, 0.5]]), points)
    to_both = [LORENTZ.dist(middle[0], point) for point in points]
    torch.testing.assert_close(to_both[0], to_both[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sum(to_both), LORENTZ.dist(*points), rtol=1e-3, atol=1e-4)


def test_mean_moves_with_a_rotation_and_a_boost():
    points, weights = random_points(6, 3).double(), torch.rand(2, 6, dtype=torch.float64)
    angle, rapidity = 0.7, 0.9
    turn = torch.eye(4, dtype=torch.float64)
    turn[1:3, 1:3] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    boost = torch.eye(4, dtype=torch.float64)
    boost[:2, :2] = torch.tensor([[np.cosh(rapidity), np.sinh(rapidity)], [np.sinh(rapidity), np.cosh(rapidity)]])
    moved = boost @ turn
    torch.testing.assert_close(lorentz_mean(weights, points @ moved.T), lorentz_mean(weights, points) @ moved.T)


def test_squared_distance_grows_with_the_geodesic_distance():
    points = random_points(20, 4)
    expected = 2 * torch.cosh(LORENTZ.dist(points[0], points[1:])) - 2
    torch.testing.assert_close(squared_distance(points[0], points[1:]), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_low_rank_method_leaves_what_an_encoder_computes(method):
    encoder = LorentzEncoder(8, 16, 2)
    graph = branching_tree(40, 0)
    arguments = torch.from_numpy(graph.features), neighbours(graph.edges, 40)
    before = encoder(*arguments)
    training = apply_low_rank(encoder, LowRankConfig(method=method, rank=2))
    assert len(training.layers) == 2
    torch.testing.assert_close(encoder(*arguments), before, rtol=1e-4, atol=1e-4)
    merge_low_rank(encoder)
    torch.testing.assert_close(encoder(*arguments), before, rtol=1e-4, atol=1e-4)


def infected_tree(method):
    """A tree, and settings that suit all methods: GaLore scales its steps by a quarter."""
    low_rank = method and LowRankConfig(method=method, rank=2, iteration_steps=15, iteration_warmup=3)
    rate = 0.04 if method == "galore" else 0.015
    return branching_tree(300, 101), GraphConfig(steps=150, low_rank=low_rank, learning_rate=rate, seed=101)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_links_of_a_tree_are_found_better_than_by_chance(method):
    assert train_links(*infected_tree(method)) > 0.7


@pytest.mark.parametrize("method", [None, "sst"])
def test_nodes_of_a_tree_are_told_apart_better_than_by_calling_all_infected(method):
    graph, config = infected_tree(method)
    share = graph.labels.mean()
    assert train_nodes(graph, config) > 2 * share / (1 + share) + 0.15


def test_sides_of_the_karate_club_are_found():
    scores = [train_nodes(karate_club(), GraphConfig(steps=100, learning_rate=0.02, seed=seed)) for seed in range(3)]
    assert np.mean(scores) > 0.8


def test_learning_repeats_to_the_number():
    low_rank = LowRankConfig(rank=4, iteration_steps=5, iteration_warmup=1)
    config = GraphConfig(steps=20, low_rank=low_rank)
    graph = preferential_attachment(60, 0)
    assert train_links(graph, config) == train_links(graph, config) != train_links(graph, replace(config, seed=1))


def test_tree_has_one_path_to_every_node_and_infections_descend_from_the_root():
    graph = branching_tree(200, 3)
    children = graph.edges[:, 1]
    assert sorted(children.tolist()) == list(range(1, 200))
    assert (graph.edges[:, 0] < children).all()
    for parent, child in graph.edges:
        assert graph.labels[child] <= graph.labels[parent]
    assert set(np.bincount(graph.edges[:, 0])[:60]) == {2, 3}
    assert 0.1 < graph.labels.mean() < 0.9


def test_preferential_attachment_makes_hubs():
    graph = preferential_attachment(300, 0)
    degrees = np.bincount(graph.edges.ravel())
    assert len(graph.edges) == 2 * (300 - 2)
    assert degrees.max() > 8 * np.median(degrees)
    assert 0 < graph.labels.mean() < 0.3


def test_karate_club_is_zacharys():
    club = karate_club()
    assert (club.num_nodes, len(club.edges), club.labels.sum()) == (34, 78, 17)


def test_measures_agree_with_their_definitions():
    positive, negative = np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0])
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert roc_auc(positive, negative) == pytest.approx(np.mean(wins))
    assert f1(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == pytest.approx(0.5)
    assert f1(np.array([0, 0]), np.array([1, 0])) == 0.0
