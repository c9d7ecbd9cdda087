"""How close predictions come to a language whose true next-symbol distribution is known.

Decisions:
- Every measure is a number a position, where a prediction is asked for; `Scores` averages them over positions.
- The distance of distributions is the total variation, half the L1. The published code logs the whole L1, and also
  where a string ends; neither is done here.
- Nothing is renormalised: probability on the separator, or on padding, is probability that the true symbols lack.
- The automaton, not the token, is what intervals resample.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perplab.scoring.bootstrap import Interval, bootstrap_ratio
from perplab.text.synthetic.language_learning import Episodes

Floats = npt.NDArray[np.floating]


def is_legal(probabilities: Floats, targets: Floats) -> npt.NDArray[np.bool_]:
    """Whether the likeliest token is one that the language allows, (...,) for distributions (..., vocabulary)."""
    likeliest = probabilities.argmax(axis=-1)[..., None]
    legal: npt.NDArray[np.bool_] = np.take_along_axis(targets, likeliest, axis=-1)[..., 0] > 0
    return legal


def total_variation(probabilities: Floats, targets: Floats) -> Floats:
    """Half the summed absolute difference, from 0 to 1, (...,) for distributions (..., vocabulary)."""
    distance: Floats = np.abs(probabilities - targets).sum(axis=-1) / 2
    return distance


def entropy(targets: Floats) -> Floats:
    """Of the true distribution, in nats: the log of how many symbols are legal; (...,)."""
    return _expected(targets, targets)


def divergence(probabilities: Floats, targets: Floats) -> Floats:
    """KL(true || predicted) in nats: the expected cost above the floor; infinite where a legal symbol gets nothing."""
    return _expected(targets, probabilities) - entropy(targets)


def _expected(targets: Floats, probabilities: Floats) -> Floats:
    """Expected cost of what is drawn from `targets`."""
    with np.errstate(divide="ignore"):
        costs = -np.log(np.where(targets > 0, probabilities, 1.0))
    expected: Floats = (targets * costs).sum(axis=-1)
    return expected


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over the scored positions of each automaton.

    Attributes:
        sums: measure to (automata,).
        positions: (automata,) scored positions.
        legal_by_degree: out-degree of the true state to (automata, 2): positions with a legal prediction, and all.
    """

    sums: Mapping[str, Floats]
    positions: npt.NDArray[np.int64]
    legal_by_degree: Mapping[int, npt.NDArray[np.int64]]

    @property
    def figures(self) -> dict[str, float]:
        """`DFA accuracy`, `TVD`, and in nats `NLL`, `floor`, `NLL above floor`, `KL`; and accuracies by out-degree."""
        means = {name: float(sums.sum() / self.positions.sum()) for name, sums in self.sums.items()}
        by_degree = {
            f"DFA accuracy, {degree} edges": float(counts[:, 0].sum() / counts[:, 1].sum())
            for degree, counts in self.legal_by_degree.items()
        }
        return means | {"NLL above floor": means["NLL"] - means["floor"]} | by_degree

    def interval(self, measure: str, level: float = 0.95, seed: int = 0) -> Interval:
        """Where the mean of a measure lies, by drawing automata anew.

        Args:
            measure: a key of `sums`.
            level: confidence.
            seed: of the draws.

        Raises:
            PerplabError: the measure is infinite, or there are fewer than two automata.
        """
        return bootstrap_ratio(self.sums[measure], self.positions, level=level, seed=seed)


def score_probabilities(probabilities: Floats, episodes: Episodes) -> Scores:
    """Score predictions that are at hand; those of the languages themselves are `episodes.target_probs`.

    Args:
        probabilities: (rows, length, vocabulary), the distribution of what follows each token.
        episodes: as many rows.
    """
    asked, targets = episodes.score_mask, episodes.target_probs.astype(np.float64)
    legal = is_legal(probabilities, targets)
    label = np.where(asked, episodes.labels, 0)[..., None]
    with np.errstate(divide="ignore"):
        cost = -np.log(np.take_along_axis(probabilities, label, axis=-1)[..., 0].astype(np.float64))
    measures = {
        "DFA accuracy": legal,
        "TVD": total_variation(probabilities, targets),
        "NLL": cost,
        "floor": entropy(targets),
        "KL": divergence(probabilities, targets),
    }
    degree = np.where(asked, (targets > 0).sum(axis=-1), 0)
    return Scores(
        sums={name: np.where(asked, values, 0.0).sum(axis=1) for name, values in measures.items()},
        positions=asked.sum(axis=1),
        legal_by_degree={
            int(edges): np.stack(((legal & (degree == edges)).sum(axis=1), (degree == edges).sum(axis=1)), axis=1)
            for edges in np.unique(degree[asked])
        },
    )
