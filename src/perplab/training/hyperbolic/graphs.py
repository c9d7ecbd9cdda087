"""Small graphs: trees along which something spreads, networks with hubs, and a club that fell out.

Real graphs of the field (Disease, Airport, Cora, PubMed) are downloads; a branching tree with an infection is how the
first of them was made.
"""

from dataclasses import dataclass

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph.

    Args:
        edges: (edges, 2), each once.
        features: (nodes, features).
        labels: (nodes,) classes from 0.
    """

    edges: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def num_nodes(self) -> int:
        """Nodes of the graph."""
        return len(self.features)


_KINSHIP = 0.8
"""Share of a feature's variance that a child has from its parent."""


def branching_tree(nodes: int, seed: int, *, features: int = 8, spread: float = 0.9) -> Graph:
    """A random tree of two or three children a node, along which an infection spreads from the root.

    Features are standard normal and inherited, in part; without that, an edge of a tree that is held out would leave no
    trace. The first is a node's susceptibility: the child of an infected node is infected where a random draw of
    probability `spread` succeeds and the susceptibility is above -1.
    """
    draw = np.random.default_rng(seed)
    parents = np.zeros(nodes, np.int64)
    waiting, index = [0], 1
    while index < nodes:
        parent = waiting.pop(0)
        for _ in range(min(int(draw.integers(2, 4)), nodes - index)):
            parents[index] = parent
            waiting.append(index)
            index += 1
    traits = draw.normal(size=(nodes, features)).astype(np.float32)
    for node in range(1, nodes):
        traits[node] = _KINSHIP**0.5 * traits[parents[node]] + (1 - _KINSHIP) ** 0.5 * traits[node]
    infected = np.zeros(nodes, np.int64)
    infected[0] = 1
    luck = draw.random(nodes) < spread
    for node in range(1, nodes):
        infected[node] = infected[parents[node]] and luck[node] and traits[node, 0] > -1
    return Graph(np.stack([parents[1:], np.arange(1, nodes)], axis=1), traits, infected)


def preferential_attachment(nodes: int, seed: int, *, edges: int = 2, features: int = 8) -> Graph:
    """A network that grows by nodes which attach to those with many edges; labelled by whether a node is a hub.

    Features are noise.
    """
    grown = nx.barabasi_albert_graph(nodes, edges, seed=seed)
    degrees = np.array([degree for _, degree in sorted(grown.degree())])
    noise = np.random.default_rng(seed).normal(size=(nodes, features)).astype(np.float32)
    return Graph(np.array(grown.edges(), np.int64), noise, (degrees > 2 * edges).astype(np.int64))


def karate_club() -> Graph:
    """Zachary's club of 34 people: who met whom, and whose side each took. A node's features say which it is."""
    club = nx.karate_club_graph()
    sides = [int(club.nodes[node]["club"] == "Officer") for node in sorted(club.nodes)]
    return Graph(np.array(club.edges(), np.int64), np.eye(len(sides), dtype=np.float32), np.array(sides, np.int64))
