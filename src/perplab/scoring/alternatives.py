"""What a model would rather have said: its likeliest tokens at each place.

- The places are those of requests, scored exactly as the engine scores them, so the probability of a token that is
  among its own alternatives is the one its cost says.
- As everywhere, logits exist for some tokens at a time and are normalised in float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.engine import head_of, scored_states
from perplab.scoring.requests import Request

CHUNK_LOGITS = 2**22
"""Logits that exist at a time: 16 MiB in float32."""


@dataclass(frozen=True, eq=False)
class Alternatives:
    """The likeliest tokens at each place, dearest last.

    Attributes:
        token_ids: (places, count) int32.
        log_probs: (places, count) float32, their log-probabilities in nats, falling along each row.
    """

    token_ids: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]


def alternatives(language_model: LanguageModel, requests: Iterable[Request], count: int) -> Alternatives:
    """The `count` likeliest tokens at every scored place of `requests`, in their order.

    Args:
        language_model: the model to ask.
        requests: whose continuations are the places.
        count: alternatives for each; a smaller vocabulary gives all of its tokens.

    Raises:
        PerplabError: `count` is below 1, there is no request, a distribution is not a number, or a request does not fit
            the model.
    """
    if count < 1:
        raise PerplabError(f"{count} alternatives are asked for", "ask for 1 or more")
    head, vocabulary_size = head_of(language_model)
    chunk = max(1, CHUNK_LOGITS // vocabulary_size)
    token_ids: list[Tensor] = []
    log_probs: list[Tensor] = []
    with torch.inference_mode():
        for scored in scored_states(language_model, requests):
            for states in torch.split(scored.hidden_states, chunk):
                logits = head(states).float()
                top = logits.topk(min(count, vocabulary_size), dim=-1)
                token_ids.append(top.indices.int().cpu())
                log_probs.append((top.values - logits.logsumexp(dim=-1, keepdim=True)).cpu())
    if not token_ids:
        raise PerplabError("there is no token to find alternatives of", "give at least one request")
    found = Alternatives(torch.cat(token_ids).numpy(), torch.cat(log_probs).numpy())
    if np.isnan(found.log_probs).any():
        place = int(np.isnan(found.log_probs).any(axis=1).argmax())
        raise PerplabError(
            f"{language_model.name} gives no distribution at scored token {place}",
            "check the weights, or load the model in float32",
        )
    return found
