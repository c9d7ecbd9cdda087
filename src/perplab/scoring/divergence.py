"""How far a second model's next-token distributions are from a first one's, token by token.

Decisions:
- Both models read the same requests, so both meet every token after the same context; nothing is read from disk twice
  and no (tokens, vocabulary) tensor exists: two chunks of logits at a time, normalised in float32.
- The figures are those people know from llama.cpp's `--kl-divergence`: KL(first || second) with its median and tails,
  how often the likeliest token is the same, how far the probability of the token that came moved.
- The mean and the rate have intervals over documents, which llama.cpp's standard errors over tokens are not.
- A vocabulary is its map from tokens to ids. Equal sizes are not enough, and nothing is cut to fit.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.any_order import is_any_order
from perplab.scoring.bootstrap import Interval, resampled_ratios
from perplab.scoring.conventions import CONVENTIONS, DEFAULT, PlannedDocument, max_length_of, plan
from perplab.scoring.engine import head_of, scored_states
from perplab.scoring.requests import Request
from perplab.text import Document

CHUNK_LOGITS = 2**22
"""Logits of each model that exist at a time."""


@dataclass(frozen=True)
class Divergence:
    """KL(first || second) over the tokens of a text, in nats, and what goes with it.

    Args:
        tokens: scored.
        mean: over tokens.
        mean_interval: of the mean; None for fewer than two documents, as all intervals here.
        median: half of the tokens have less.
        p90: nine tenths have less.
        p99: all but one in a hundred have less.
        maximum: of the token where the models differ most.
        same_top_rate: how often both find the same token likeliest.
        same_top_interval: of that rate.
        probability_change_rms: root mean square of how far the probability of the token that came moved.
    """

    tokens: int
    mean: float
    mean_interval: Interval | None
    median: float
    p90: float
    p99: float
    maximum: float
    same_top_rate: float
    same_top_interval: Interval | None
    probability_change_rms: float


def divergence(
    first: LanguageModel,
    second: LanguageModel,
    documents: Iterable[Document],
    *,
    batch_tokens: int | None = None,
    watch: Callable[[int, int], None] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Divergence:
    """Run both models over the same documents, each in windows that fit both.

    Args:
        first: the model to measure against.
        second: the other.
        documents: the text, read as a stream.
        batch_tokens: tokens that go through a model at once; None for the engine's choice.
        watch: called after each document with the tokens scored in it and its bytes.
        resamples: bootstrap resamples of documents.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        PerplabError: the vocabularies differ, or there is no token to score, or a distribution is not a number.
    """
    if difference := vocabulary_difference(first, second):
        raise PerplabError(difference, "compare the models by cost, which needs no common vocabulary")
    tokens = _compared_tokens(first, second, documents, batch_tokens, watch)
    if not np.isfinite(tokens.kl).all():
        raise PerplabError(
            f"the divergence of {second.name} from {first.name} is not finite at scored token "
            f"{int(np.isfinite(tokens.kl).argmin())}",
            "check the weights of both, or load them in float32",
        )
    counts = np.bincount(tokens.document)
    sums = np.stack([np.bincount(tokens.document, values) for values in (tokens.kl, tokens.same_top)], axis=1)
    ratios = resampled_ratios(sums, np.stack((counts, counts), axis=1), resamples=resamples, seed=seed)
    mean_interval, same_top_interval = (ratio.interval(level) if ratio else None for ratio in ratios)
    median, p90, p99 = np.quantile(tokens.kl, (0.5, 0.9, 0.99)).tolist()
    return Divergence(
        tokens=len(tokens.kl),
        mean=float(tokens.kl.mean(dtype=np.float64)),
        mean_interval=mean_interval,
        median=median,
        p90=p90,
        p99=p99,
        maximum=float(tokens.kl.max()),
        same_top_rate=float(tokens.same_top.mean()),
        same_top_interval=same_top_interval,
        probability_change_rms=float(np.sqrt(np.square(tokens.probability_change, dtype=np.float64).mean())),
    )


class _Tokens(NamedTuple):
    """Some scored tokens, (n,) each.

    Attributes:
        kl: divergence, nats.
        same_top: whether both models find the same token likeliest.
        probability_change: second model's probability of the token that came, minus the first's.
        document: number of the document each is in.
    """

    kl: npt.NDArray[np.float32]
    same_top: npt.NDArray[np.bool_]
    probability_change: npt.NDArray[np.float32]
    document: npt.NDArray[np.int64]


def vocabulary_difference(first: LanguageModel, second: LanguageModel) -> str | None:
    """What keeps the distributions of two models from being compared; None where both mean the same by every id."""
    for model in (first, second):
        if is_any_order(model.model):
            return f"{model.name} is a masked diffusion model, which predicts hidden tokens and no next ones"
    vocabulary, other = first.tokenizer.get_vocab(), second.tokenizer.get_vocab()
    differing = [token for token in vocabulary | other if vocabulary.get(token) != other.get(token)]
    if differing:
        token = min(differing, key=lambda token: (min(ids.get(token, math.inf) for ids in (vocabulary, other)), token))
        ids = (
            f"{found.get(token, 'missing')} in {model.name}" for found, model in ((vocabulary, first), (other, second))
        )
        return f"the vocabularies differ: token {token!r} is {' and '.join(ids)}"
    sizes = [head_of(model)[1] for model in (first, second)]
    if sizes[0] != sizes[1]:
        return f"the heads differ: {first.name} predicts over {sizes[0]} ids and {second.name} over {sizes[1]}"
    return None


def _compared_tokens(
    first: LanguageModel,
    second: LanguageModel,
    documents: Iterable[Document],
    batch_tokens: int | None,
    watch: Callable[[int, int], None] | None,
) -> _Tokens:
    (head, vocabulary_size), (other_head, _) = head_of(first), head_of(second)
    chunk = max(1, CHUNK_LOGITS // vocabulary_size)
    window = min(max_length_of(first), max_length_of(second))
    owners: list[int] = []
    planned = plan(CONVENTIONS[DEFAULT], first.tokenizer, documents, window)
    asked, asked_again = tee(_requests(planned, owners, watch))
    rows = zip(
        scored_states(first, asked, batch_tokens=batch_tokens),
        scored_states(second, asked_again, batch_tokens=batch_tokens),
        strict=True,
    )
    found = []
    with torch.inference_mode():
        for row, other_row in rows:
            parts = (row.hidden_states, other_row.hidden_states, row.labels, row.request)
            for states, other_states, labels, request in zip(
                *(torch.split(part, chunk) for part in parts), strict=True
            ):
                logits, other_logits = head(states), other_head(other_states).to(states.device)
                found.append((*_compared(logits, other_logits, labels), request.cpu().numpy()))
    kl, same_top, change, request = map(np.concatenate, zip(*found, strict=True))
    return _Tokens(kl, same_top, change, np.array(owners)[request])


def _requests(
    planned: Iterable[PlannedDocument], owners: list[int], watch: Callable[[int, int], None] | None
) -> Iterator[Request]:
    """The requests of all documents; the number of each one's document joins `owners`."""
    for number, document in enumerate(planned):
        owners.extend([number] * len(document.requests))
        yield from document.requests
        if watch is not None:
            watch(sum(len(request.continuation) for request in document.requests), document.num_bytes)


def _compared(
    logits: Tensor, other_logits: Tensor, labels: Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Divergence, whether the likeliest token is the same, and change of the label's probability, (n,) each."""
    log_p, log_q = (torch.log_softmax(each, dim=-1, dtype=torch.float32) for each in (logits, other_logits))
    p = log_p.exp()
    # A token of probability 0 contributes nothing, where 0 * -inf would make the sum a NaN.
    kl = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(dim=-1)
    of_label, other_of_label = (log_probs.gather(-1, labels[:, None])[:, 0].exp() for log_probs in (log_p, log_q))
    same_top = log_p.argmax(dim=-1) == log_q.argmax(dim=-1)
    kl = kl.clamp(min=0)  # sums over nearly equal distributions round to either side of 0
    return kl.cpu().numpy(), same_top.cpu().numpy(), (other_of_label - of_label).cpu().numpy()
