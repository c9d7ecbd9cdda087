"""What a model's next-token distribution says about each token: the metrics that everything downstream reduces.

- One function for the whole package. Detection, rating, reasoning and comparison are sums over its columns.
- Logits live for some tokens at a time: the head is applied here, to hidden states, so no (tokens, vocabulary) tensor
  exists whatever the length of the text. The head gets enough tokens for a good matrix product, in the model's dtype;
  what is made of its logits in float32 is made for fewer, in memory that stays in the cache.
- Log-probabilities are taken in float32, whatever the model computes in.
- A cost that is not a number is given back as it is: the engine, which knows the model and the text, names it.
"""

from collections.abc import Callable, Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from perplab.errors import PerplabError

TokenMetric = Literal["nll", "rank", "log_rank", "entropy", "max_log_prob", "top_p", "log_prob_variance", "top_token"]
TOKEN_METRICS: tuple[TokenMetric, ...] = get_args(TokenMetric)
COST_ALONE: tuple[TokenMetric, ...] = ("nll",)

HEAD_LOGITS = 2**24
"""Logits that exist at a time in the model's dtype: 32 MiB in bfloat16."""

METRIC_LOGITS = 2**20
"""Logits that exist at a time in float32: 4 MiB."""


def token_metrics(
    hidden_states: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    metrics: Collection[TokenMetric] = COST_ALONE,
    *,
    vocabulary_size: int,
) -> dict[TokenMetric, Tensor]:
    """Metrics of the distributions p that `head(hidden_states)` stands for, and of the tokens that came.

    Step 1 of PAWN (Miralles-González et al. 2025) gives the five features; the rest are what zero-shot detectors and
    rankings ask for. The mean of log p under p is minus the entropy, and has no column of its own.

    Args:
        hidden_states: (tokens, width), the last hidden state at the position that predicts each token. Logits
            themselves, where `head` returns its argument.
        labels: (tokens,) the ids that came.
        head: hidden states to logits, (n, width) to (n, vocabulary).
        metrics: which to compute.
            `nll`: -log p(label), nats.
            `rank`: tokens with a probability at least the label's, itself among them; 1 for the likeliest.
            `log_rank`: its natural logarithm.
            `entropy`: of p, nats.
            `max_log_prob`: log p of the likeliest token.
            `top_p`: probability of the tokens counted by `rank`: the smallest nucleus that holds the label.
            `log_prob_variance`: variance of log p under p, nats squared.
            `top_token`: the likeliest token's id.
        vocabulary_size: of the head, which decides for how many tokens logits exist.

    Returns:
        (tokens,) of each metric; float32, but int32 for `rank` and `top_token`.

    Raises:
        PerplabError: a metric is unknown.
    """
    unknown = sorted(set(metrics) - set(TOKEN_METRICS))
    if unknown:
        raise PerplabError(f"unknown token metric {unknown[0]!r}", f"choose among {', '.join(TOKEN_METRICS)}")
    head_rows, metric_rows = (max(1, limit // vocabulary_size) for limit in (HEAD_LOGITS, METRIC_LOGITS))
    chunks = [
        _chunk_metrics(chunk_logits, chunk_labels, metrics)
        for states, state_labels in zip(
            torch.split(hidden_states, head_rows), torch.split(labels, head_rows), strict=True
        )
        for chunk_logits, chunk_labels in zip(
            torch.split(head(states), metric_rows), torch.split(state_labels, metric_rows), strict=True
        )
    ]
    return {metric: torch.cat([chunk[metric] for chunk in chunks]) for metric in metrics}


def _chunk_metrics(logits: Tensor, labels: Tensor, metrics: Collection[TokenMetric]) -> dict[TokenMetric, Tensor]:
    log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    of_label = log_probs.gather(-1, labels[:, None])
    found: dict[TokenMetric, Tensor] = {}
    if "nll" in metrics:
        found["nll"] = -of_label[:, 0]
    if "max_log_prob" in metrics or "top_token" in metrics:
        found["max_log_prob"], top = log_probs.max(dim=-1)
        found["top_token"] = top.int()
    if {"rank", "log_rank", "top_p"} & set(metrics):
        at_least = log_probs >= of_label
        rank = at_least.sum(dim=-1)
        found["rank"] = rank.int()
        found["log_rank"] = rank.float().log()
    if {"top_p", "entropy", "log_prob_variance"} & set(metrics):
        probs = log_probs.exp()
        # A token of probability 0 contributes nothing, where 0 * -inf would make the sum a NaN.
        weighted = torch.where(probs > 0, probs * log_probs, 0.0)
        entropy = -weighted.sum(dim=-1)
        found["entropy"] = entropy
        if "top_p" in metrics:
            found["top_p"] = (probs * at_least).sum(dim=-1)
        if "log_prob_variance" in metrics:
            deviation = torch.where(probs > 0, log_probs + entropy[:, None], 0.0)
            found["log_prob_variance"] = (probs * deviation.square()).sum(dim=-1)
    return {metric: found[metric] for metric in metrics}
