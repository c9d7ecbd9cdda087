"""The engine: what tokens cost a causal language model, for every number in the package.

Decisions:
- Requests are packed into rows of segments (`rows.py`): nothing is padded, and beginnings that neighbours share are
  computed once.
- A family whose attention goes through transformers' interface reads such a row in one pass (`packed_forward.py`). Any
  other causal model reads the same requests as batches padded on the right, where causality alone makes them exact.
- The head is applied where a token is scored and nowhere else, to a chunk of tokens at a time (`token_metrics.py`).
- A cost that is not finite is an error that names the layer and the token it began at, never a number.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.anatomy import anatomy
from perplab.models.any_order import refuse_any_order
from perplab.models.position_limit import position_limit
from perplab.scoring.hidden_states import has_known_parts, row_states
from perplab.scoring.requests import Request
from perplab.scoring.rows import Row, rows_of
from perplab.scoring.token_metrics import COST_ALONE, TokenMetric, token_metrics

RequestScores = dict[TokenMetric, npt.NDArray[np.generic]]

BATCH_TOKENS = 4096
"""Tokens that go through a model at once."""


@dataclass(frozen=True, eq=False)
class ScoredStates:
    """Hidden states that predict scored tokens, for some requests in their order.

    Attributes:
        hidden_states: (scored, width), what the head takes; logits where the model's head cannot be told apart.
        labels: (scored,) the ids that came.
        request: (scored,) int64, the number of the request each belongs to.
        offset: (scored,) int64, its place in the request's continuation.
    """

    hidden_states: Tensor
    labels: Tensor
    request: Tensor
    offset: Tensor


def score_requests(
    language_model: LanguageModel,
    requests: Iterable[Request],
    metrics: Collection[TokenMetric] = COST_ALONE,
    *,
    batch_tokens: int | None = None,
) -> Iterator[RequestScores]:
    """Score requests.

    Args:
        language_model: the model; it is put into evaluation mode.
        requests: read as a stream. Neighbours that share a beginning share its computation.
        metrics: which of `TOKEN_METRICS` to give.
        batch_tokens: tokens that go through the model at once; None for `BATCH_TOKENS`.

    Yields:
        For each request, in order, one (scored tokens,) array a metric.

    Raises:
        PerplabError: a request is longer than the model's positions or has ids outside its vocabulary, a cost is not
            finite, or the model is a masked one.
    """
    head, vocabulary_size = head_of(language_model)
    wanted = tuple(dict.fromkeys((*metrics, "nll")))
    for row, hidden_states in _rows_with_states(language_model, requests, batch_tokens):
        labels = row.labels.to(hidden_states.device)
        with torch.inference_mode():
            found = token_metrics(hidden_states, labels, head, wanted, vocabulary_size=vocabulary_size)
        if not torch.isfinite(found["nll"]).all():
            _refuse_not_finite(language_model, row, int((~torch.isfinite(found["nll"])).nonzero()[0]))
        columns = {metric: found[metric].cpu().numpy() for metric in metrics}
        borders = np.cumsum([len(request.continuation) for request in row.requests])[:-1]
        parts = {metric: np.split(values, borders) for metric, values in columns.items()}
        for index in range(len(row.requests)):
            yield {metric: parts[metric][index] for metric in metrics}


def scored_states(
    language_model: LanguageModel, requests: Iterable[Request], *, batch_tokens: int | None = None
) -> Iterator[ScoredStates]:
    """The hidden states behind the scores, a row at a time; models given the same requests make the same cuts.

    Raises:
        PerplabError: as for `score_requests`, but for costs that are not finite.
    """
    for row, hidden_states in _rows_with_states(language_model, requests, batch_tokens):
        yield ScoredStates(hidden_states, row.labels.to(hidden_states.device), row.request, row.offset)


def head_of(language_model: LanguageModel) -> tuple[Callable[[Tensor], Tensor], int]:
    """What turns the states of `scored_states` into logits, and the vocabulary size of those."""
    model = language_model.model
    if has_known_parts(model):
        parts = anatomy(model)
        return parts.logits, int(parts.head.matrix.shape[0])
    return lambda logits: logits, int(model.config.vocab_size)


def _rows_with_states(
    language_model: LanguageModel, requests: Iterable[Request], batch_tokens: int | None
) -> Iterator[tuple[Row, Tensor]]:
    if batch_tokens is not None and batch_tokens < 1:
        raise PerplabError(f"batch_tokens is {batch_tokens}", "give 1 or more")
    refuse_any_order(language_model.model, language_model.name)
    model = language_model.model.eval()
    checked = _checked(language_model, requests)
    for row in rows_of(checked, batch_tokens or BATCH_TOKENS):
        with torch.inference_mode():
            yield row, row_states(model, row)


def _checked(language_model: LanguageModel, requests: Iterable[Request]) -> Iterator[Request]:
    """The requests, refusing those that the model has no positions or no embeddings for."""
    config = language_model.model.config
    positions = position_limit(config)
    vocabulary = language_model.model.get_input_embeddings().weight.shape[0]
    for request in requests:
        length = len(request.context) + len(request.continuation) - 1
        if positions is not None and length > positions:
            raise PerplabError(
                f"{length} tokens do not fit the {positions} positions of {language_model.name}",
                "use a shorter window or a shorter context",
            )
        for ids in (request.context, request.continuation):
            if not 0 <= ids.min() <= ids.max() < vocabulary:
                raise PerplabError(
                    f"token {ids.max()} is outside the vocabulary of {vocabulary} of {language_model.name}",
                    "encode the text with the model's own tokenizer",
                )
        yield request


def _refuse_not_finite(language_model: LanguageModel, row: Row, scored: int) -> NoReturn:
    """Say where what is not finite begins: rerun the request by itself and look at every layer."""
    index = int(row.request[scored])
    request = row.requests[index - int(row.request[0])]
    inputs = torch.from_numpy(request.input_ids.astype(np.int64))[None].to(language_model.model.device)
    with torch.inference_mode():
        layers = language_model.model(input_ids=inputs, use_cache=False, output_hidden_states=True).hidden_states or ()
    source, token = "the head", len(request.context) - 1 + int(row.offset[scored])
    for layer, states in enumerate(layers):
        broken = ~torch.isfinite(states[0]).all(dim=-1)
        if broken.any():
            source, token = f"layer {layer}" if layer else "the embedding", int(broken.nonzero()[0])
            break
    where = request.name or f"request {index}"
    raise PerplabError(
        f"{source} of {language_model.name} gives no finite value at token {token} of {where}",
        "check the weights, or load the model in float32",
    )
