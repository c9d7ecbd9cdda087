"""Learning on a graph: the classes of its nodes, and which of its edges are missing.

Decisions:
- A class has a point of its own, kept as space alone so that any optimiser moves it; a node's score is minus the
  squared distance to it, plus a bias.
- Links are ranked by distance: a real one should be nearer than a random pair by a margin. Held-out edges are taken out
  of the graph before messages pass along it.
- The figure is that of the step where the validation part is best.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn

from perplab.training.config import TrainConfig
from perplab.training.hyperbolic.graphs import Graph
from perplab.training.hyperbolic.lorentz import LorentzEncoder, on_manifold, squared_distance
from perplab.training.low_rank import LowRankConfig, LowRankTraining, apply_low_rank
from perplab.training.optimizer import new_optimizer

_MARGIN = 2.0
_EVALUATE_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Settings of learning on a graph."""

    dimension: int = 16
    """Of the hyperbolic space."""
    layers: int = 2
    """Rounds of messages."""
    steps: int = 400
    """Of the optimiser, each over the whole graph."""
    learning_rate: float = 0.01
    """Constant but for what a low-rank method makes of it."""
    weight_decay: float = 0.0
    """Of dense matrices."""
    low_rank: LowRankConfig | None = None
    """The method that trains the encoder's matrices; None: all of them."""
    seed: int = 0
    """Decides initial weights and the split."""


class NodeClassifier(nn.Module):
    """An encoder and a point for each class.

    Args:
        encoder: of the nodes.
        dimension: of its space.
        classes: to tell apart.
    """

    def __init__(self, encoder: LorentzEncoder, dimension: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.centres = nn.Parameter(torch.randn(classes, dimension))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """Scores (nodes, classes)."""
        points = self.encoder(features, neighbours)
        return self.bias - squared_distance(points[:, None], on_manifold(self.centres))


def train_nodes(graph: Graph, config: GraphConfig) -> float:
    """Learn the classes of 30 % of a graph's nodes; return the F1 of class 1 on 60 %, chosen by the other 10 %."""
    draw = np.random.default_rng(config.seed)
    order = draw.permutation(graph.num_nodes)
    train, valid, test = np.split(order, [int(0.3 * len(order)), int(0.4 * len(order))])
    torch.manual_seed(config.seed)
    encoder = LorentzEncoder(graph.features.shape[1], config.dimension, config.layers)
    model = NodeClassifier(encoder, config.dimension, int(graph.labels.max()) + 1)
    features, labels = torch.from_numpy(graph.features), torch.from_numpy(graph.labels)
    near = neighbours(graph.edges, graph.num_nodes)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(features, near)[train], labels[train])

    def figures() -> tuple[float, float]:
        chosen = model(features, near).argmax(dim=1).numpy()
        return f1(chosen[valid], graph.labels[valid]), f1(chosen[test], graph.labels[test])

    return _learn(model, config, loss, figures)


def train_links(graph: Graph, config: GraphConfig) -> float:
    """Learn from 85 % of a graph's edges; return the ROC-AUC of 10 % against random pairs, chosen by the other 5 %."""
    draw = np.random.default_rng(config.seed)
    order = draw.permutation(graph.edges)
    train, valid, test = np.split(order, [int(0.85 * len(order)), int(0.9 * len(order))])
    known = {tuple(sorted(edge)) for edge in graph.edges.tolist()}
    measured = [(part, _other_pairs(draw, graph.num_nodes, len(part), known)) for part in (valid, test)]
    torch.manual_seed(config.seed)
    encoder = LorentzEncoder(graph.features.shape[1], config.dimension, config.layers)
    features, near = torch.from_numpy(graph.features), neighbours(train, graph.num_nodes)

    def distances(points: Tensor, pairs: npt.NDArray[np.int64]) -> Tensor:
        return squared_distance(points[pairs[:, 0]], points[pairs[:, 1]])

    def loss() -> Tensor:
        points = encoder(features, near)
        others = draw.integers(0, graph.num_nodes, train.shape)
        return (distances(points, train) - distances(points, others) + _MARGIN).relu().mean()

    def figures() -> tuple[float, float]:
        points = encoder(features, near)
        of_valid, of_test = (
            roc_auc(-distances(points, links).numpy(), -distances(points, others).numpy()) for links, others in measured
        )
        return of_valid, of_test

    return _learn(encoder, config, loss, figures)


def neighbours(edges: npt.NDArray[np.int64], nodes: int) -> Tensor:
    """(nodes, nodes): each row the even mean over a node and its neighbours."""
    adjacency = torch.eye(nodes)
    adjacency[edges[:, 0], edges[:, 1]] = adjacency[edges[:, 1], edges[:, 0]] = 1.0
    return adjacency / adjacency.sum(dim=1, keepdim=True)


def f1(chosen: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    """F1 of class 1; 0 where there is neither a right nor a wrong one."""
    right = int(((chosen == 1) & (labels == 1)).sum())
    wrong = int((chosen != labels).sum())
    return 2 * right / (2 * right + wrong) if right else 0.0


def roc_auc(positive: npt.NDArray[np.float32], negative: npt.NDArray[np.float32]) -> float:
    """The chance that a positive scores above a negative, half where they are equal."""
    ranks = stats.rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _learn(
    model: nn.Module, config: GraphConfig, loss: Callable[[], Tensor], figures: Callable[[], tuple[float, float]]
) -> float:
    """Take the steps; `figures` are those of the validation and the test part."""
    method = LowRankTraining() if config.low_rank is None else apply_low_rank(model, config.low_rank, config.steps)
    optimizer = new_optimizer(model, TrainConfig(weight_decay=config.weight_decay))
    best, at_best = -1.0, 0.0
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * method.rate_factor(step)
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        method.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(step, optimizer)
        if (step + 1) % _EVALUATE_EVERY == 0 or step + 1 == config.steps:
            with torch.no_grad():
                valid, test = figures()
            if valid > best:
                best, at_best = valid, test
    return at_best


def _other_pairs(
    draw: np.random.Generator, nodes: int, count: int, known: set[tuple[int, ...]]
) -> npt.NDArray[np.int64]:
    """Random pairs that are no edges."""
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        left, right = sorted(draw.integers(0, nodes, 2).tolist())
        if left != right and (left, right) not in known:
            pairs.append((left, right))
    return np.array(pairs, np.int64)
