"""What tokens cost a masked diffusion model: shares of an upper bound on the cost of what is asked for.

- A request is one sequence. Its context is given, and the masks hide parts of the continuation alone; the token that
  stands for "nothing before" is not read.
- A token's share is the mean, over masks that hide k of d tokens with k spread evenly over 1 to d, of d / k times its
  cost where it is hidden. Shares add up to the any-order bound of the request.
- The masks of a request follow from the seed and its tokens alone: not from its neighbours, the batch, or the model.
  So models with one tokenizer meet the same masks, and an interrupted run goes on with the same.
"""

from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b

import numpy as np
import torch

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.diffusion.bound import BATCH_TOKENS, ao_bound
from perplab.models.diffusion.reading import Reader
from perplab.scoring.engine import RequestScores
from perplab.scoring.requests import Request
from perplab.scoring.streams import NOTHING_BEFORE
from perplab.scoring.token_metrics import TokenMetric


def bound_requests(
    language_model: LanguageModel,
    requests: Iterable[Request],
    metrics: Collection[TokenMetric],
    *,
    draws: int,
    seed: int,
    batch_tokens: int | None = None,
) -> Iterator[RequestScores]:
    """Bound the cost of requests.

    Args:
        language_model: a masked model.
        requests: read as a stream.
        metrics: `nll` alone: nothing else of a token has a meaning that sums over orders.
        draws: masks a request, 2 or more.
        seed: of the masks.
        batch_tokens: tokens that go through the model at once; None for `BATCH_TOKENS`.

    Yields:
        For each request, in order, (scored tokens,) float32 shares of its bound, in nats.

    Raises:
        PerplabError: another metric is asked for, there are too few draws, or the model cannot read the text.
    """
    if others := [metric for metric in metrics if metric != "nll"]:
        raise PerplabError(
            f"{language_model.name} is a masked diffusion model, which gives a bound on cost and no {others[0]}",
            "leave the metric out, or name a causal language model",
        )
    reader = Reader.of(language_model)
    device = language_model.model.device
    for request in requests:
        context = request.context[request.context != NOTHING_BEFORE].tolist()
        continuation = request.continuation.tolist()
        ids = torch.tensor([[*reader.opening, *context, *continuation, *reader.closing]], device=device)
        first = len(reader.opening) + len(context)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        scored[:, first : first + len(continuation)] = True
        bound = ao_bound(
            reader.diffusion,
            ids,
            draws,
            torch.Generator().manual_seed(_seed_of(request, seed)),
            loss_mask=scored,
            batch_tokens=batch_tokens or BATCH_TOKENS,
        )
        shares = bound.token_nats[scored].float().cpu().numpy()
        if not np.isfinite(shares).all():
            raise PerplabError(
                f"{language_model.name} gives no finite cost for {request.name or 'a request'}",
                "check the weights, or load the model in float32",
            )
        yield {"nll": shares}


def _seed_of(request: Request, seed: int) -> int:
    digest = blake2b(digest_size=4, key=seed.to_bytes(8, "big", signed=True))
    for part in (request.context, request.continuation):
        digest.update(len(part).to_bytes(8, "big") + part.astype(np.int64).tobytes())
    return int.from_bytes(digest.digest(), "big")  # as many bits as a generator of the CPU takes
