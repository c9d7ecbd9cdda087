"""Scoring text: documents in, one row a token out.

Decisions:
- What is scored, and from which context, is a convention's business (`conventions.py`); what it costs is the engine's.
- Scores are made a part at a time, some hundred thousand tokens of whole documents, so memory does not grow with the
  text when they go to a folder. Rows are packed anew for each part: a run that was killed continues after its last
  whole part, scores no document twice, and ends in the same bytes.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.diffusion.reading import Reader
from perplab.models.position_limit import position_limit
from perplab.scoring.any_order import bound_requests
from perplab.scoring.conventions import (
    Convention,
    PlannedDocument,
    convention_for,
    fitted_windows,
    max_length_of,
    plan,
)
from perplab.scoring.engine import RequestScores, score_requests
from perplab.scoring.requests import Request
from perplab.scoring.score_parts import ScoreParts
from perplab.scoring.token_metrics import COST_ALONE, TokenMetric
from perplab.scoring.token_scores import TokenScores
from perplab.text import Corpus, Document, tokenizer_fingerprint

PART_TOKENS = 2**17
"""A part ends with the document that brings it to so many tokens."""


def score(
    language_model: LanguageModel,
    text: str | Iterable[Document],
    *,
    convention: str | Convention | None = None,
    metrics: Collection[TokenMetric] = (),
    out: str | os.PathLike[str] | None = None,
    batch_tokens: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """What every token of a text costs.

    Args:
        language_model: the model and its tokenizer.
        text: one text, or documents.
        convention: which tokens are scored and what each is predicted from, by name or described; by default
            `perplab`, and `any-order-bound` for a masked diffusion model, whose scores are shares of an upper bound.
        metrics: columns beside the cost.
        out: a folder to keep the scores in. Where it holds part of the same run, that run goes on; where it holds all
            of it, nothing is computed. A run is told by its model, its text and these arguments.
        batch_tokens: tokens that go through the model at once; None for the engine's choice.
        watch: called after each document with the tokens scored in it and its bytes.

    Raises:
        PerplabError: there is nothing to score, the convention does not fit the text or the model, a metric is asked
            for that a bound does not have, a cost is not finite, or `out` holds other scores.
    """
    chosen = convention_for(language_model, convention)
    wanted: tuple[TokenMetric, ...] = tuple(dict.fromkeys(("nll", *metrics)))
    documents = [Document(text, "text", "text")] if isinstance(text, str) else text
    max_length = longest_window(language_model, chosen)
    origin = _origin(language_model, documents, chosen, max_length, wanted)
    if out is not None:
        documents = documents if isinstance(documents, Corpus) else list(documents)
        origin |= _identity(language_model, documents, chosen)
    parts = ScoreParts(out, origin)
    if not parts.is_complete:
        planned = plan(chosen, language_model.tokenizer, documents, max_length)
        for part in _cut(islice(planned, parts.num_documents, None)):
            requests = [request for document in part for request in document.requests]
            found = request_scores(language_model, requests, chosen, wanted, batch_tokens=batch_tokens)
            scored = list(_by_document(part, found, watch))
            parts.add(_tokens(part, scored, parts, wanted), _documents(part))
    scores = TokenScores(*parts.finish(), origin)
    if len(scores.nll) == 0:
        raise PerplabError("there is no token to score", "give a text that is not empty")
    return scores


def request_scores(
    language_model: LanguageModel,
    requests: Iterable[Request],
    convention: Convention,
    metrics: Collection[TokenMetric] = COST_ALONE,
    *,
    batch_tokens: int | None = None,
) -> Iterator[RequestScores]:
    """The scores of requests as a convention takes them: exact costs, or shares of an upper bound.

    Raises:
        PerplabError: as for `score_requests` and `bound_requests`.
    """
    if convention.is_upper_bound:
        draws, seed = convention.draws, convention.seed
        return bound_requests(language_model, requests, metrics, draws=draws, seed=seed, batch_tokens=batch_tokens)
    return score_requests(language_model, requests, metrics, batch_tokens=batch_tokens)


def longest_window(language_model: LanguageModel, convention: Convention) -> int:
    """Longest window: the model's positions; a model without a limit reads whatever window is asked for."""
    if convention.is_upper_bound:
        longest = Reader.of(language_model).longest
        return longest or max(max_length_of(language_model), convention.window or 0)
    positions = max_length_of(language_model)
    unlimited = position_limit(language_model.model.config) is None
    return max(positions, convention.window or 0) if unlimited else positions


def _origin(
    language_model: LanguageModel,
    documents: Iterable[Document],
    convention: Convention,
    max_length: int,
    metrics: Sequence[TokenMetric],
) -> dict[str, Any]:
    fitted = fitted_windows(convention, max_length)
    return {
        "model": language_model.name,
        "dtype": str(language_model.model.dtype).removeprefix("torch."),
        "tokenizer_fingerprint": tokenizer_fingerprint(language_model.tokenizer),
        "corpus": documents.spec if isinstance(documents, Corpus) else None,
        "convention": convention.name,
        "window": fitted.length,
        "stride": fitted.stride,
        "metrics": list(metrics),
    } | ({"draws": convention.draws, "seed": convention.seed} if convention.is_upper_bound else {})


def _identity(
    language_model: LanguageModel, documents: Corpus | list[Document], convention: Convention
) -> dict[str, Any]:
    """What tells a run from every other, for scores that are kept; reading all weights for it takes a while."""
    if isinstance(documents, Corpus):
        text = documents.fingerprint
    else:
        digest = blake2b(digest_size=16)
        for document in documents:
            for part in (document.name, document.domain, document.text):
                encoded = part.encode("utf-8", "surrogatepass")
                digest.update(len(encoded).to_bytes(8, "big") + encoded)
        text = digest.hexdigest()
    return {
        "model_fingerprint": language_model.fingerprint,
        "text_fingerprint": text,
        "convention_choices": asdict(convention),
    }


def _cut(planned: Iterable[PlannedDocument]) -> Iterator[list[PlannedDocument]]:
    """Documents in parts of about `PART_TOKENS`."""
    part: list[PlannedDocument] = []
    tokens = 0
    for document in planned:
        part.append(document)
        tokens += len(document.token_ids)
        if tokens >= PART_TOKENS:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def _by_document(
    part: Sequence[PlannedDocument], found: Iterator[RequestScores], watch: Callable[[int, int], None] | None
) -> Iterator[list[RequestScores]]:
    """The scores of each document's requests."""
    for document in part:
        scored = list(islice(found, len(document.requests)))
        if watch is not None:
            watch(sum(len(request.continuation) for request in document.requests), document.num_bytes)
        yield scored


def _tokens(
    part: Sequence[PlannedDocument],
    scored: Sequence[Sequence[RequestScores]],
    parts: ScoreParts,
    metrics: Sequence[TokenMetric],
) -> pa.Table:
    """One row a scored token, with documents and windows numbered on from the parts before."""
    windows = [
        (number, document, first, request)
        for number, document in enumerate(part, start=parts.num_documents)
        for first, request in zip(document.first_positions, document.requests, strict=True)
    ]
    counts = [len(request.continuation) for *_, request in windows]
    runs = [(document, slice(first, first + len(request.continuation))) for _, document, first, request in windows]
    columns = {
        "document": np.repeat(np.array([number for number, *_ in windows], dtype=np.int32), counts),
        "position": _joined([np.arange(run.start, run.stop, dtype=np.int32) for _, run in runs], np.int32),
        "token_id": _joined([request.continuation for *_, request in windows], np.int32),
        "start": _joined([document.starts[run] for document, run in runs], np.int64),
        "end": _joined([document.ends[run] for document, run in runs], np.int64),
        "window": np.repeat(np.arange(len(windows), dtype=np.int32) + np.int32(parts.num_windows), counts),
    }
    requests = [request for document in scored for request in document]
    return pa.table(
        columns | {metric: _joined([found[metric] for found in requests], np.float32) for metric in metrics}
    )


def _documents(part: Sequence[PlannedDocument]) -> pa.Table:
    return pa.table(
        {
            "name": pa.array([document.name for document in part], pa.string()),
            "domain": pa.array([document.domain for document in part], pa.string()),
            "bytes": pa.array([document.num_bytes for document in part], pa.int64()),
            "words": pa.array([document.num_words for document in part], pa.int64()),
        }
    )


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype_if_none: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype_if_none)
