"""Perplexity: token costs made one number by a convention, and how sure that number is.

- Every average is a ratio of two sums over clusters: nats over tokens, words or bytes, or weighted window means over
  weights. The number and its interval by bootstrap follow from the same two columns.
- A cluster is a document. Where a convention joins the documents it is a window, since the text is no longer known in
  documents; windows of one document resemble each other, and such an interval is on the narrow side.
- Bytes and words are those of the tokens that were scored: half of the nats over all of the bytes is no figure. Where
  part of a document is scored, its words count in proportion to the bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.bootstrap import Interval, resampled_ratios
from perplab.scoring.conventions import Convention, convention_for, convention_of
from perplab.scoring.text_scores import score
from perplab.scoring.token_scores import TokenScores
from perplab.text import Document

Floats = npt.NDArray[np.float64]

_LARGEST_EXPONENT = math.log(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Perplexity:
    """What a text costs, by a convention.

    Attributes:
        convention: its name.
        unit: of the value: token perplexity, word perplexity or bits per byte, or an upper bound on one of them.
        value: the convention's number.
        interval: of the value; None where there is one cluster.
        bits_per_byte: of the tokens that were scored.
        bits_per_byte_interval: of that; None where there is one cluster.
        token_perplexity: exponentiated cost of a token, every token counting alike.
        word_perplexity: exponentiated cost of a word.
        byte_perplexity: exponentiated cost of a byte.
        num_tokens: tokens scored.
        num_documents: documents scored; 1 where they were joined.
        num_bytes: bytes of the tokens that were scored.
        nats: cost of all of them.
        is_upper_bound: whether all of these figures are upper bounds on what their names say.
    """

    convention: str
    unit: str
    value: float
    interval: Interval | None
    bits_per_byte: float
    bits_per_byte_interval: Interval | None
    token_perplexity: float
    word_perplexity: float
    byte_perplexity: float
    num_tokens: int
    num_documents: int
    num_bytes: int
    nats: float
    is_upper_bound: bool

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; what is infinite is null."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


@overload
def perplexity(scored: TokenScores, *, resamples: int = ..., level: float = ..., seed: int = ...) -> Perplexity: ...


@overload
def perplexity(
    scored: LanguageModel,
    text: str | Iterable[Document],
    *,
    convention: str | Convention | None = ...,
    resamples: int = ...,
    level: float = ...,
    seed: int = ...,
) -> Perplexity: ...


def perplexity(
    scored: TokenScores | LanguageModel,
    text: str | Iterable[Document] = (),
    *,
    convention: str | Convention | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Perplexity:
    """Perplexity of scores by the convention they were made with, or of a text that is scored first.

    Args:
        scored: token scores, or a model to score `text` with.
        text: one text, or documents.
        convention: how `text` is scored and averaged; None for what suits the model.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        PerplabError: the scores are of an unknown convention or empty, or whatever `score` refuses.
    """
    if isinstance(scored, LanguageModel):
        of = convention_for(scored, convention)
        return summary(score(scored, text, convention=of), of, resamples=resamples, level=level, seed=seed)
    made_with = convention_of(scored.origin["convention"])
    return summary(scored, made_with, resamples=resamples, level=level, seed=seed)


def summary(
    scores: TokenScores, convention: Convention, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Perplexity:
    """Perplexity of scores that were made with `convention`, which need not be one of the named.

    Args:
        scores: of tokens.
        convention: how they were made.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        PerplabError: there is no token.
    """
    sums = _sums(scores, convention)
    average = _average(scores, convention, sums)
    per_byte = _Average(sums.nats, sums.bytes * math.log(2), float)
    interval, byte_interval = _intervals((average, per_byte), resamples, level, seed)
    nats = float(sums.nats.sum())
    return Perplexity(
        convention=convention.name,
        unit=convention.unit,
        value=average.value,
        interval=interval,
        bits_per_byte=per_byte.value,
        bits_per_byte_interval=byte_interval,
        token_perplexity=_Average(sums.nats, sums.tokens, _exp).value,
        word_perplexity=_Average(sums.nats, sums.words, _exp).value,
        byte_perplexity=_Average(sums.nats, sums.bytes, _exp).value,
        num_tokens=len(scores.nll),
        num_documents=scores.documents.num_rows,
        num_bytes=int(sums.bytes.sum()),
        nats=nats,
        is_upper_bound=convention.is_upper_bound,
    )


def headline(scores: TokenScores, convention: Convention) -> float:
    """The convention's number alone.

    Raises:
        PerplabError: there is no token.
    """
    return _average(scores, convention, _sums(scores, convention)).value


def _exp(nats: float) -> float:
    """Exponentiated cost; infinite where no float holds it, as for the one word of a text without spaces."""
    return math.exp(nats) if nats < _LARGEST_EXPONENT else math.inf


class _Sums(NamedTuple):
    """Sums over the scored tokens of each cluster, (clusters,) each, and the cluster of each token."""

    nats: Floats
    tokens: Floats
    bytes: Floats
    words: Floats
    cluster: npt.NDArray[np.int64]


class _Average(NamedTuple):
    """A ratio of sums over clusters, and what makes a figure of it."""

    numerators: Floats
    denominators: Floats
    transform: Callable[[float], float]

    @property
    def value(self) -> float:
        return self.transform(float(self.numerators.sum() / self.denominators.sum()))


def _sums(scores: TokenScores, convention: Convention) -> _Sums:
    if len(scores.nll) == 0:
        raise PerplabError("there is no token to take a perplexity of", "score a text that is not empty")
    document = scores.tokens["document"].to_numpy()
    sizes = (scores.tokens["end"].to_numpy() - scores.tokens["start"].to_numpy()).astype(np.float64)
    document_bytes = scores.documents["bytes"].to_numpy().astype(np.float64)
    document_words = scores.documents["words"].to_numpy().astype(np.float64)
    if convention.joins_documents:
        _, cluster = np.unique(scores.tokens["window"].to_numpy(), return_inverse=True)
        clusters = int(cluster.max()) + 1
    else:
        cluster, clusters = document.astype(np.int64), scores.documents.num_rows
    is_empty = document_bytes == 0
    words_per_byte = np.divide(document_words, document_bytes, where=~is_empty, out=np.zeros_like(document_words))
    words = _totals(words_per_byte[document] * sizes, cluster, clusters)
    if not convention.joins_documents:
        words += np.where(is_empty, document_words, 0)
    return _Sums(
        nats=_totals(scores.nll, cluster, clusters),
        tokens=_totals(np.ones(len(cluster)), cluster, clusters),
        bytes=_totals(sizes, cluster, clusters),
        words=words,
        cluster=cluster,
    )


def _totals(values: npt.NDArray[np.floating], cluster: npt.NDArray[np.int64], clusters: int) -> Floats:
    """Sums of `values` over the members of each cluster, (clusters,)."""
    return np.bincount(cluster, values, clusters).astype(np.float64)


def _average(scores: TokenScores, convention: Convention, sums: _Sums) -> _Average:
    if convention.averaging == "tokens":
        return _Average(sums.nats, sums.tokens, _exp)
    if convention.averaging == "words":
        return _Average(sums.nats, sums.words, _exp)
    if convention.averaging == "bytes":
        return _Average(sums.nats, sums.bytes * math.log(2), float)
    _, first_token, owner, counts = np.unique(
        scores.tokens["window"].to_numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    means = np.bincount(owner, scores.nll) / counts
    weights: Floats = np.ones(len(means))
    if convention.averaging == "window means by labels":
        weights = counts.astype(np.float64) - _overlaps_another(scores, convention, first_token)
    cluster, clusters = sums.cluster[first_token], len(sums.nats)
    return _Average(_totals(weights * means, cluster, clusters), _totals(weights, cluster, clusters), _exp)


def _overlaps_another(
    scores: TokenScores, convention: Convention, first_token: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which windows begin with tokens that the window before them reached, (windows,)."""
    document = scores.tokens["document"].to_numpy()[first_token]
    follows: npt.NDArray[np.bool_] = np.concatenate(([False], document[1:] == document[:-1]))
    span = int(scores.origin["window"]) + convention.windows.keeps_last_prediction
    return follows & (int(scores.origin["stride"]) < span)


def _intervals(averages: Sequence[_Average], resamples: int, level: float, seed: int) -> list[Interval | None]:
    numerators = np.stack([average.numerators for average in averages], axis=1)
    denominators = np.stack([average.denominators for average in averages], axis=1)
    if len(numerators) < 2:
        return [None] * len(averages)
    ratios = resampled_ratios(numerators, denominators, resamples=resamples, seed=seed)
    found: list[Interval | None] = []
    for average, ratio in zip(averages, ratios, strict=True):
        interval = ratio.interval(level) if ratio else None
        found.append(interval and Interval(average.transform(interval.low), average.transform(interval.high), level))
    return found
