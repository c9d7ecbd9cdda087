"""N-gram heads: layers whose attention is fixed by the token ids (Akyürek et al., arXiv 2401.12973).

A head of order n averages what a layer made of the tokens that followed earlier occurrences of the last n tokens, and
adds a linear function of that average and of the current state to the residual stream. Order 1 is an induction head.

Decisions:
- head(h)_t = W_a mean(h_s) + W_b h_t + b, after a norm of its own, added to the residual stream. The heads of a layer
  work one after another, after the layer's channel mixer, without channel mixers of their own.
- Heads at zero add nothing, so they can be put into a trained model without changing it, and learn from there: W_a
  receives a gradient as soon as the average is not zero.
- N-grams are matched inside the current document only, and padding belongs to none.
- While generating, a head keeps its normed inputs, as attention keeps keys and values, and a new token compares its
  n-gram with those before it. Whole sequences are averaged in O(T d).
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from perplab.errors import PerplabError
from perplab.kernels.ngram_average import (
    NO_DOCUMENT,
    ngram_average,
    ngram_average_reference,
    ngram_matches,
    ngram_occurrences,
)
from perplab.models.mixer_cache import MixerState
from perplab.models.mixers.context import SequenceContext
from perplab.models.parts import RMSNorm


class HasNGramHeads(Protocol):
    """What a config says about n-gram heads."""

    hidden_size: int
    rms_norm_eps: float
    ngram_heads: list[list[int]]  # orders of the heads after each layer
    ngram_separator: int | None  # token that n-grams do not reach across


class NGramHead(nn.Module):
    """One head: what the followers were like on average, and the current state, each through a matrix.

    Args:
        hidden_size: width of the residual stream.
        order: tokens of an n-gram.

    Raises:
        PerplabError: the order is below 1.
    """

    def __init__(self, hidden_size: int, order: int) -> None:
        super().__init__()
        if order < 1:
            raise PerplabError(f"an n-gram head of order {order}", "give 1 or more")
        self.follower_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.current_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, followers: Tensor) -> Tensor:
        """What the head adds, (batch, length, hidden_size).

        Args:
            hidden_states: (batch, length, hidden_size).
            followers: as `hidden_states`: the mean of what followed the n-gram before, zeros where it is new.
        """
        return self.follower_proj(followers) + self.current_proj(hidden_states)


class NGramHeads(nn.Module):
    """The heads after one layer, each with a norm in front.

    Args:
        config: which orders, and of what width.
        layer_index: of the layer.
    """

    def __init__(self, config: HasNGramHeads, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.separator: int | None = config.ngram_separator
        self.orders = config.ngram_heads[layer_index]
        self.heads = nn.ModuleList(NGramHead(config.hidden_size, order) for order in self.orders)
        self.norms = nn.ModuleList(RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in self.orders)

    def set_to_zero(self) -> None:
        """Make the heads add nothing."""
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """The residual stream with what the heads add.

        Args:
            hidden_states: (batch, length, hidden_size).
            context: of the sequences; what the heads keep in its cache grows.

        Raises:
            PerplabError: the model was called with embeddings alone.
        """
        if context.input_ids is None:
            raise PerplabError("n-gram heads compare token ids, and the model was given embeddings", "give input_ids")
        state = context.extra_state(self.layer_index)
        input_ids = _grown(state, "input_ids", context.input_ids)
        documents = _grown(state, "documents", _documents(context))
        averages = {
            order: _average(input_ids, documents, order, self.separator, hidden_states.shape[1])
            for order in {*self.orders}
        }
        for index, (order, norm, head) in enumerate(zip(self.orders, self.norms, self.heads, strict=True)):
            current = norm(hidden_states)
            followers = averages[order](_grown(state, f"hidden_states.{index}", current))
            hidden_states = hidden_states + head(current, followers)
        if state is not None:
            state.advance(context.input_ids.shape[1])
        return hidden_states


def _average(
    input_ids: Tensor, documents: Tensor, order: int, separator: int | None, queries: int
) -> Callable[[Tensor], Tensor]:
    """From all states (batch, length, width) to the followers' means for the last `queries` positions."""
    if queries == input_ids.shape[1]:
        occurrences = ngram_occurrences(input_ids, documents, order, separator=separator)
        return partial(ngram_average, occurrences=occurrences)
    matches = ngram_matches(input_ids, documents, order, separator=separator, queries=queries)
    return partial(ngram_average_reference, matches=matches)


def _documents(context: SequenceContext) -> Tensor:
    """(batch, length) which document of its row each token belongs to, from 0; -1 for padding."""
    if context.packed:
        opened = (context.position_ids == 0).cumsum(dim=1)
        return opened - opened[:, :1]
    documents = torch.zeros_like(context.position_ids)
    return documents if context.real is None else documents.masked_fill(~context.real, NO_DOCUMENT)


def _grown(state: MixerState | None, name: str, new: Tensor) -> Tensor:
    """What a state keeps under a name, and `new`, (batch, length, ...), behind it; without a state, `new` alone."""
    if state is None:
        return new
    kept = state.tensors.get(name)
    state.tensors[name] = new if kept is None else torch.cat((kept, new), dim=1)
    return state.tensors[name]
