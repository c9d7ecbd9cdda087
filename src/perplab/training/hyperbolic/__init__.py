"""Graph networks in hyperbolic space, whose matrices are plain ones: any low-rank method trains them.

Extra `hyperbolic` (geoopt). `train_nodes` and `train_links` learn on a `Graph`; `branching_tree`,
`preferential_attachment` and `karate_club` make graphs.
"""

from perplab.training.hyperbolic.graphs import Graph, branching_tree, karate_club, preferential_attachment
from perplab.training.hyperbolic.learning import GraphConfig, train_links, train_nodes
from perplab.training.hyperbolic.lorentz import LorentzEncoder, LorentzLinear, lorentz_mean

__all__ = [
    "Graph",
    "GraphConfig",
    "LorentzEncoder",
    "LorentzLinear",
    "branching_tree",
    "karate_club",
    "lorentz_mean",
    "preferential_attachment",
    "train_links",
    "train_nodes",
]
