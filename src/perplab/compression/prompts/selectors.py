"""Which prompt to read a text after: scores of every prompt for a context, the highest of which is taken.

- `attention`: mean attention of the context on the prompt's tokens, in one layer.
- `attention_calibrated`: the same as a z-score, since some prompts draw attention whatever the text is.
- `likelihood`: minus the mean cost of the context after the prompt.
- `random`: drawn anew for each text, by its tokens and the seed, so that a text keeps its prompt.
- Any other name is the name of a prompt, which every text gets.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.prompts.attention_to_latents import attention_to_latents
from perplab.errors import PerplabError
from perplab.models.latent_tokens import LatentCache, read_after

SELECTORS = ("attention", "attention_calibrated", "likelihood", "random")

Selector = Callable[[PreTrainedModel, LatentCache, Tensor, Tensor], Tensor]
"""From a model, the prompts' cache, (batch, length) ids and their mask to (batch, prompts) scores."""


def token_costs(model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What each token costs after each prompt.

    Args:
        model: a causal LM.
        cache: the prompts, one a row; it stays as it is.
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 for padding.

    Returns:
        (batch, prompts, length - 1) nats, of the second token to the last; 0 for padding and a row's first token.
    """
    batch, prompts = len(input_ids), len(cache.latent_mask)
    rows = cache.rows(torch.arange(prompts, device=input_ids.device).repeat(batch))
    ids, mask = (given.repeat_interleave(prompts, dim=0) for given in (input_ids, attention_mask))
    logits = read_after(model, rows, ids, mask, use_cache=True).logits[:, :-1].float()
    costs = logits.logsumexp(-1) - logits.gather(-1, ids[:, 1:, None])[..., 0]
    predicted = (mask[:, 1:] * mask[:, :-1]).bool()
    return costs.masked_fill(~predicted, 0.0).unflatten(0, (batch, prompts))


def likelihood_scores(model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Minus the mean cost of the context.

    Raises:
        PerplabError: a context has fewer than two tokens, of which none is predicted.
    """
    if int(attention_mask.sum(-1).min()) < 2:
        raise PerplabError("a context of one token has no likelihood", "give 2 tokens or more, or another selector")
    predicted = (attention_mask.sum(-1) - 1)[:, None]
    return -token_costs(model, cache, input_ids, attention_mask).sum(-1) / predicted


def random_scores(seed: int) -> Selector:
    """1 for a prompt drawn by the text and the seed, 0 for the others."""

    def scores(model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        prompts = len(cache.latent_mask)
        texts = [ids[real > 0].tolist() for ids, real in zip(input_ids, attention_mask, strict=True)]
        digests = [blake2b(f"{seed} {text}".encode(), digest_size=8).digest() for text in texts]
        drawn = [int.from_bytes(digest, "big") % prompts for digest in digests]
        return torch.eye(prompts, device=input_ids.device)[drawn]

    return scores


def fixed_scores(prompt: int) -> Selector:
    """1 for one prompt, whatever the text is."""

    def scores(model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.eye(len(cache.latent_mask), device=input_ids.device)[[prompt] * len(input_ids)]

    return scores


def attention_scores(layer: int, mean: Sequence[float] = (), deviation: Sequence[float] = ()) -> Selector:
    """Mean attention in a layer; its z-score where mean and deviation of each prompt are given."""

    def scores(model: PreTrainedModel, cache: LatentCache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = attention_to_latents(model, cache, input_ids, attention_mask, layer)
        if not mean:
            return found
        return (found - found.new_tensor(mean)) / found.new_tensor(deviation)

    return scores
