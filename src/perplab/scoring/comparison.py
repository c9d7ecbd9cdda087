"""Two models on the same text: how much dearer the second is, how sure that is, and where it sits.

- Every figure is the second's minus the first's, paired by document: what makes a document hard is hard for both, and
  cancels.
- The unit is a token of the first model, or a byte. With one tokenizer a ratio of perplexities is what it says; with
  two it is the ratio of the costs of the same text spread over the first one's tokens, which still compares.
- The rows of each table add up to the change of the whole text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from perplab.errors import PerplabError
from perplab.scoring.alignment import AlignedScores, align
from perplab.scoring.bootstrap import FloatArray, Interval, PairedDifference, bootstrap_paired, resampled_ratios
from perplab.scoring.conventions import ANY_ORDER_BOUND
from perplab.scoring.passages import Passage, worst_passages
from perplab.scoring.tables import Grouping, by_domain, by_position, by_token_class, group_sums
from perplab.scoring.token_classes import TokenClassifier
from perplab.scoring.token_scores import TokenScores


@dataclass(frozen=True)
class ModelCost:
    """What a text costs one model.

    Args:
        nats: in all.
        tokens: of the model's own tokenizer.
        perplexity: of such a token.
        bits_per_byte: of the bytes that were scored.
        is_upper_bound: whether the model can only bound its cost, and these figures are at most too high.
    """

    nats: float
    tokens: int
    perplexity: float
    bits_per_byte: float
    is_upper_bound: bool


@dataclass(frozen=True)
class PerplexityRatio:
    """Second model's perplexity over the first's, over tokens of the first.

    Args:
        value: the ratio.
        interval: where it lies.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class ChangeRow:
    """How the cost of one group of tokens changed.

    Args:
        name: of the group.
        tokens: in it, of the first model.
        token_share: of all tokens.
        first: nats a token.
        second: nats of the same text, a token of the first model.
        change: nats that the group adds to the cost of the whole text; the rows of a table add up.
        difference: `second - first`; None where fewer than two documents have such tokens.
    """

    name: str
    tokens: int
    token_share: float
    first: float
    second: float
    change: float
    difference: PairedDifference | None


@dataclass(frozen=True, eq=False)
class ScoreComparison:
    """A second model against a first, on one text.

    Attributes:
        first: what the text costs the first model.
        second: what it costs the second.
        same_tokens: whether both cut the text alike. Where not, the second's cost is laid over the first's tokens.
        bits_per_byte: difference.
        nats_per_token: difference, over tokens of the first model.
        perplexity_ratio: the same as a ratio.
        documents: columns `name`, `domain`, `bytes` and `tokens` (what was scored, tokens of the first model),
            `first_nats`, `second_nats`.
        by_domain: where the change sits.
        by_position: the same by place in the document.
        by_token_class: the same by kind of token; empty where the tokenizer was not given.
        worst_passages: where the second model lost most, the worst first.
    """

    first: ModelCost
    second: ModelCost
    same_tokens: bool
    bits_per_byte: PairedDifference
    nats_per_token: PairedDifference
    perplexity_ratio: PerplexityRatio
    documents: pa.Table
    by_domain: Sequence[ChangeRow]
    by_position: Sequence[ChangeRow]
    by_token_class: Sequence[ChangeRow]
    worst_passages: Sequence[Passage]


def compare_scores(
    first: TokenScores,
    second: TokenScores,
    *,
    classifier: TokenClassifier | None = None,
    passages: int = 10,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> ScoreComparison:
    """Compare two models' costs of the same documents.

    Args:
        first: costs of the model to measure against.
        second: costs of the other.
        classifier: of the first model's tokenizer, for the table by kind of token.
        passages: how many of the worst passages to give at most.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        PerplabError: the documents differ or are fewer than two, or tokens differ and some bytes are not scored.
    """
    aligned = align(first, second)
    refuse_too_few(aligned.scores.documents.num_rows)
    documents = _document_table(aligned)
    nats, other_nats = (documents[column].to_numpy() for column in ("first_nats", "second_nats"))
    tokens, bits = documents["tokens"].to_numpy(), documents["bytes"].to_numpy() * math.log(2)
    paired = partial(bootstrap_paired, nats, other_nats, resamples=resamples, level=level, seed=seed)
    table = partial(_change_table, aligned, resamples=resamples, level=level, seed=seed)
    per_token = paired(tokens)
    return ScoreComparison(
        first=_cost(nats, len(aligned.first), bits, first),
        second=_cost(other_nats, aligned.second_tokens, bits, second),
        same_tokens=aligned.same_tokens,
        bits_per_byte=paired(bits),
        nats_per_token=per_token,
        perplexity_ratio=_ratio(per_token),
        documents=documents,
        by_domain=table(by_domain(aligned.scores)),
        by_position=table(by_position(aligned.scores)),
        by_token_class=table(by_token_class(aligned.scores, classifier)) if classifier else (),
        worst_passages=worst_passages(aligned, passages),
    )


def refuse_too_few(documents: int) -> None:
    """See that there is something to resample.

    Raises:
        PerplabError: there are fewer than two documents.
    """
    if documents < 2:
        raise PerplabError(
            f"no interval of a difference follows from {documents} document{'s' * (documents != 1)}",
            "give at least two documents, or cut a long text into several",
        )


def _document_table(aligned: AlignedScores) -> pa.Table:
    tokens, documents = aligned.scores.tokens, aligned.scores.documents
    owner = tokens["document"].to_numpy()
    sums = {
        "bytes": tokens["end"].to_numpy() - tokens["start"].to_numpy(),
        "tokens": np.ones(len(owner), dtype=np.int64),
        "first_nats": aligned.first,
        "second_nats": aligned.second,
    }
    table = documents.select(["name", "domain"])
    for column, values in sums.items():
        summed = np.bincount(owner, values, documents.num_rows).astype(values.dtype)
        table = table.append_column(column, pa.array(summed))
    return table


def _cost(nats: FloatArray, tokens: int, bits: FloatArray, scores: TokenScores) -> ModelCost:
    total = float(nats.sum())
    bounds = scores.origin.get("convention") == ANY_ORDER_BOUND.name
    return ModelCost(total, tokens, math.exp(total / tokens), total / float(bits.sum()), bounds)


def _ratio(per_token: PairedDifference) -> PerplexityRatio:
    interval = per_token.interval
    return PerplexityRatio(
        math.exp(per_token.value), Interval(math.exp(interval.low), math.exp(interval.high), interval.level)
    )


def _change_table(
    aligned: AlignedScores, grouping: Grouping, *, resamples: int, level: float, seed: int
) -> list[ChangeRow]:
    tokens, first, second = (
        group_sums(aligned.scores, grouping, values)
        for values in (np.ones(len(aligned.first)), aligned.first, aligned.second)
    )
    ratios = resampled_ratios(second - first, tokens, resamples=resamples, seed=seed)
    all_tokens = tokens.sum()
    rows = zip(grouping.names, tokens.sum(axis=0), first.sum(axis=0), second.sum(axis=0), ratios, strict=True)
    return [
        ChangeRow(
            name=name,
            tokens=int(count),
            token_share=float(count / all_tokens),
            first=float(nats / count),
            second=float(other_nats / count),
            change=float(other_nats - nats),
            difference=ratio.difference(level) if ratio else None,
        )
        for name, count, nats, other_nats, ratio in rows
        if count
    ]
