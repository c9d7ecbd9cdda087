"""Where the loss sits: by domain, by place in the document, by kind of token.

- A grouping puts every token into one group, so the rows of a table add up to the whole.
- Sums go over (document, group) in one pass; all rows share one bootstrap of documents.
- Places are counted in tokens, in buckets that grow fourfold: what a model gains from context grows with its logarithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perplab.scoring.bootstrap import FloatArray, Interval, resampled_ratios
from perplab.scoring.token_classes import TOKEN_CLASSES, TokenClassifier
from perplab.scoring.token_scores import TokenScores


@dataclass(frozen=True, eq=False)
class Grouping:
    """Tokens in named groups.

    Args:
        names: of the groups, in the order of a table.
        of_token: (tokens,) index into `names`.
    """

    names: Sequence[str]
    of_token: npt.NDArray[np.integer]


@dataclass(frozen=True)
class LossRow:
    """What the tokens of one group cost.

    Args:
        name: of the group.
        tokens: in the group.
        token_share: of all tokens.
        nats_per_token: mean cost.
        loss_share: of the cost of all tokens.
        interval: of `nats_per_token`; None where fewer than two documents have such tokens.
    """

    name: str
    tokens: int
    token_share: float
    nats_per_token: float
    loss_share: float
    interval: Interval | None


def by_domain(scores: TokenScores) -> Grouping:
    """Tokens by the domain of their document, domains in the order of the documents."""
    domains = scores.documents["domain"].to_pylist()
    names = list(dict.fromkeys(domains))
    of_document = np.array([names.index(domain) for domain in domains], dtype=np.int64)
    return Grouping(names, of_document[scores.tokens["document"].to_numpy()])


def by_position(scores: TokenScores) -> Grouping:
    """Tokens by their place in the document: 0, 1-3, 4-15, 16-63 and so on."""
    positions = scores.tokens["position"].to_numpy()
    last = int(positions.max(initial=0))
    starts = [0]
    while (start := max(1, 4 * starts[-1])) <= last:
        starts.append(start)
    names = ["0", *(f"{start}-{4 * start - 1}" for start in starts[1:])]
    return Grouping(names, np.searchsorted(starts, positions, side="right") - 1)


def by_token_class(scores: TokenScores, classifier: TokenClassifier) -> Grouping:
    """Tokens by what kind of text they are."""
    columns = (scores.tokens[name].to_numpy() for name in ("token_id", "document"))
    return Grouping(TOKEN_CLASSES, classifier.classes(*columns))


def loss_table(
    scores: TokenScores, grouping: Grouping, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> list[LossRow]:
    """What the tokens of each group cost, for every group that has tokens.

    Args:
        scores: of tokens.
        grouping: of the same tokens.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.
    """
    tokens = group_sums(scores, grouping, np.ones(len(scores.nll)))
    nats = group_sums(scores, grouping, scores.nll)
    all_nats, all_tokens = nats.sum(), tokens.sum()
    ratios = resampled_ratios(nats, tokens, resamples=resamples, seed=seed)
    return [
        LossRow(
            name=name,
            tokens=int(count),
            token_share=float(count / all_tokens),
            nats_per_token=float(cost / count),
            loss_share=float(cost / all_nats) if all_nats else 0.0,
            interval=ratio.interval(level) if ratio else None,
        )
        for name, count, cost, ratio in zip(grouping.names, tokens.sum(axis=0), nats.sum(axis=0), ratios, strict=True)
        if count
    ]


def group_sums(scores: TokenScores, grouping: Grouping, values: npt.NDArray[np.floating]) -> FloatArray:
    """Sums of a number a token over each document and group, (documents, groups)."""
    shape = (scores.documents.num_rows, len(grouping.names))
    cell = scores.tokens["document"].to_numpy().astype(np.int64) * shape[1] + grouping.of_token
    return np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)
