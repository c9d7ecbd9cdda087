"""Latent tokens in front of a sequence: what a model reads before the text, without being text.

- A model meets latent tokens as a filled key-value cache. They stand before the text and cannot see it, so their keys
  and values are computed once, whatever is read after them; what comes after costs what it costs after any context.
- The same path serves training, since keys and values keep their graph, and a batch shares one pass over the latents.
- Rows of a batch may have different latents, of different numbers. Shorter ones are padded on the left, where a mask
  hides the padding, and each row counts its positions from its own first latent token.
- Latents are vectors in the place of token embeddings, or keys and values of every layer where nothing computes them.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from perplab.errors import PerplabError

LayerStates = list[tuple[Tensor, Tensor]]


class LatentCache(DynamicCache):
    """A key-value cache that begins with latent tokens.

    Args:
        layers: for each layer keys and values, each (rows, heads, latents, head_dim).
        mask: (rows, latents) booleans, false where a row is padded.
    """

    def __init__(self, layers: LayerStates, mask: Tensor) -> None:
        super().__init__(layers or None)
        self.latent_mask = mask

    @classmethod
    def of(cls, model: PreTrainedModel, latents: Sequence[Tensor]) -> "LatentCache":
        """One row for each of `latents`; differentiable.

        Args:
            model: what will read them.
            latents: each (tokens, embedding width) vectors, or (layers, 2, heads, tokens, head_dim) keys and values;
                there may be no tokens.

        Raises:
            PerplabError: the width is not that of the model's token embeddings, or the model takes nothing in their
                place.
        """
        states = [_layer_states(model, one) for one in latents]
        counts = [layers[0][0].shape[-2] if layers else 0 for layers in states]
        mask = torch.arange(max(counts)) >= max(counts) - torch.tensor(counts)[:, None]
        shape = next((layers for layers in states if layers), [])
        rows = [layers or [(key[..., :0, :], value[..., :0, :]) for key, value in shape] for layers in states]
        stacked = [
            (_stacked([key for key, _ in layer], max(counts)), _stacked([value for _, value in layer], max(counts)))
            for layer in zip(*rows, strict=True)
        ]
        return cls(stacked, mask.to(model.device))

    @property
    def counts(self) -> Tensor:
        """(rows,) latent tokens of each row."""
        return self.latent_mask.sum(-1)

    def rows(self, indices: Tensor) -> "LatentCache":
        """A cache with copies of some rows, in the order of `indices`, (rows of it,); this one stays as it is."""
        layers = [(layer.keys[indices], layer.values[indices]) for layer in self.layers if layer.is_initialized]
        return LatentCache(layers, self.latent_mask[indices])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the rows follow a beam search."""
        super().reorder_cache(beam_idx)
        self.latent_mask = self.latent_mask[beam_idx]


def read_after(
    model: PreTrainedModel,
    cache: LatentCache,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> Any:
    """The model's forward pass over text after latent tokens; `cache` grows by the text.

    Args:
        model: a causal LM.
        cache: latents and the text already read, of as many rows as the batch.
        input_ids: (batch, length).
        attention_mask: (batch, text already read + length), 0 for padding; None where there is none.
        position_ids: (batch, length), counted from the first token of the text; None to follow the mask.
        options: of the model's forward.
    """
    latents = cache.latent_mask.shape[1]
    read = cache.get_seq_length() - latents
    length = input_ids.shape[1]
    if attention_mask is None:
        attention_mask = torch.ones(len(input_ids), read + length, dtype=torch.long, device=input_ids.device)
    if position_ids is None:
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return model(
        input_ids=input_ids,
        attention_mask=torch.cat((cache.latent_mask.to(attention_mask.dtype), attention_mask), dim=1),
        position_ids=position_ids + cache.counts[:, None],
        past_key_values=cache,
        **options,
    )


def _layer_states(model: PreTrainedModel, latent: Tensor) -> LayerStates:
    """Keys and values, each (1, heads, tokens, head_dim), a layer; none of latents without tokens."""
    if latent.ndim > 2:
        states = latent.to(model.device, model.dtype)
        return [(keys[None], values[None]) for keys, values in states] if latent.shape[-2] else []
    width = model.get_input_embeddings().weight.shape[1]
    if latent.ndim != 2 or latent.shape[1] != width:
        raise PerplabError(
            f"latent tokens of shape {tuple(latent.shape)} do not fit token embeddings of {width}",
            f"give them as (tokens, {width})",
        )
    if not len(latent):
        return []
    if "inputs_embeds" not in signature(model.forward).parameters:
        raise PerplabError(
            f"a {model.config.model_type} model takes no vectors in the place of tokens", "name the model inside it"
        )
    vectors = latent.to(model.device, model.dtype)[None]
    cache = DynamicCache()  # without the config, so that no layer drops what is outside its window
    model(
        inputs_embeds=vectors,
        attention_mask=torch.ones(vectors.shape[:2], dtype=torch.long, device=vectors.device),
        position_ids=torch.arange(len(latent), device=vectors.device)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _stacked(states: list[Tensor], count: int) -> Tensor:
    return torch.cat([F.pad(one, (0, 0, count - one.shape[-2], 0)) for one in states])
