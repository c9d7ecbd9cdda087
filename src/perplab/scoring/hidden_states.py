"""The last hidden states of a row of requests, by whichever way a model can read it.

- Packed: one pass over the row, with attention that follows its segments. transformers hands every attention of the
  families below to a function registered by name; ours takes the row's tree from the context of the call, because not
  every family passes extra arguments down to it.
- Padded: any causal model reads each request by itself, batched with others of similar length and padded on the right.
  What stands to the right of a token cannot change it, so nothing has to be masked. A decoder that keeps a state of
  constant size reads long ones in pieces.
- A model whose parts are known gives the states its head takes; of any other model the logits are taken.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from perplab.kernels import SegmentTree, segment_attention
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.families import FAMILIES
from perplab.scoring.requests import Request
from perplab.scoring.rows import Row

PIECE = 2048
"""Tokens a model with a state reads at a time."""

_NAME = "perplab_segments"
_tree: ContextVar[SegmentTree] = ContextVar("tree")


def has_known_parts(model: PreTrainedModel) -> bool:
    """Whether the model's head can be applied apart from its body."""
    return model.config.model_type in FAMILIES


def reads_packed_rows(model: PreTrainedModel) -> bool:
    """Whether the model's attention goes through transformers' interface, and attention is all that mixes tokens."""
    return has_known_parts(model) and bool(getattr(model, "_supports_attention_backend", False))


def row_states(model: PreTrainedModel, row: Row) -> Tensor:
    """States that predict the row's scored tokens, (scored, width of the head's input or vocabulary)."""
    if reads_packed_rows(model):
        with _segment_attention(model, row.tree):
            states = model.base_model(
                input_ids=row.input_ids[None].to(model.device),
                position_ids=row.tree.position_ids[None].to(model.device),
                use_cache=False,
            ).last_hidden_state[0]
        return states[row.predictors.to(states.device)]
    found: dict[int, Tensor] = {}
    for batch in _padded_batches(row.requests, budget=max(len(row.input_ids), 1)):
        states = _padded_states(model, [row.requests[index] for index in batch])
        for index, request_states in zip(batch, states, strict=True):
            request = row.requests[index]
            start = len(request.context) - 1
            found[index] = request_states[start : start + len(request.continuation)]
    return torch.cat([found[index] for index in range(len(row.requests))])


def _padded_batches(requests: Sequence[Request], budget: int) -> Iterator[list[int]]:
    """Numbers of requests of similar length, whose padded inputs together have at most `budget` tokens."""
    lengths = [len(request.context) + len(request.continuation) - 1 for request in requests]
    batch: list[int] = []
    for index in sorted(range(len(requests)), key=lengths.__getitem__, reverse=True):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _padded_states(model: PreTrainedModel, requests: Sequence[Request]) -> Tensor:
    inputs = [torch.from_numpy(request.input_ids.astype(np.int64)) for request in requests]
    padded = nn.utils.rnn.pad_sequence(inputs, batch_first=True).to(model.device)
    if isinstance(model, DecoderForCausalLM) and not model.config.attends:
        return _states_in_pieces(model, padded)
    if has_known_parts(model):
        output = model(input_ids=padded, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        states: Tensor = output.hidden_states[-1]
        return states
    logits: Tensor = model(input_ids=padded, use_cache=False).logits
    return logits


def _states_in_pieces(model: DecoderForCausalLM, input_ids: Tensor) -> Tensor:
    """Last hidden states of a model that keeps a state of constant size: beyond them, memory does not grow."""
    cache, states = None, []
    for piece in torch.split(input_ids, PIECE, dim=1):
        output = model(piece, past_key_values=cache, use_cache=True, output_hidden_states=True, logits_to_keep=1)
        cache = output.past_key_values
        states.append(output.hidden_states[-1])
    return torch.cat(states, dim=1)


@contextmanager
def _segment_attention(model: PreTrainedModel, tree: SegmentTree) -> Iterator[None]:
    """Let every attention of the model follow `tree` while the block runs."""
    before = model.config._attn_implementation
    token = _tree.set(tree)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _tree.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: (1, heads, tokens, head_dim) in, (1, tokens, heads, head_dim) out."""
    mixed = segment_attention(
        query, key, value, _tree.get(), scale=scaling, soft_cap=softcap, sliding_window=sliding_window
    )
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
