"""What a decoder keeps of the tokens it has seen, a layer at a time.

- Attention keeps keys and values in the layers of `transformers`; a mixer with a state of constant size keeps tensors
  by name, of whatever shape, whose first axis is the batch. Both stand in one cache of `transformers`, so beams,
  repeated prompts and resets work for every mixer.
- N-gram heads keep something beside their layer's token mixer: `extra_layers`, one a layer.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from perplab.errors import PerplabError

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig


class MixerState(CacheLayerMixin):
    """Named tensors that stand for all the tokens a layer has seen.

    Attributes:
        tensors: name to tensor, (batch, ...); empty before the first tokens.
        seen: tokens so far, padding included.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}
        self.seen = 0

    def advance(self, length: int) -> None:
        """Count `length` more tokens."""
        self.seen += length
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """Any number of tokens fits."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a mask would cover."""
        return self.seen + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is allocated ahead."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Refuse keys and values: this layer's decoder is another's."""
        raise PerplabError("this cache belongs to a decoder with other token mixers", "begin with an empty cache")

    def reset(self) -> None:
        """Forget everything."""
        self.tensors, self.seen, self.is_initialized = {}, 0, False

    def offload(self) -> None:
        """Move to the CPU."""
        self.tensors = {name: tensor.to("cpu", non_blocking=True) for name, tensor in self.tensors.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the rows follow a beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.tensors = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.tensors.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in the order of `indices`."""
        self.tensors = {
            name: tensor.index_select(0, indices.to(tensor.device)) for name, tensor in self.tensors.items()
        }


class DecoderCache(Cache):
    """A cache for one decoder; see `decoder_cache`."""

    def __init__(self, layers: list[CacheLayerMixin], extra_layers: list[MixerState]) -> None:
        super().__init__(layers=[*layers, *extra_layers])
        self.extra_layers = extra_layers

    @property
    def num_bytes(self) -> int:
        """Bytes of all that is kept."""
        total = 0
        for layer in self.layers:
            kept = layer.tensors.values() if isinstance(layer, MixerState) else (layer.keys, layer.values)
            total += sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
        return total


def decoder_cache(config: "DecoderConfig") -> DecoderCache:
    """An empty cache for decoders of a config."""
    makers = {
        "attention": DynamicLayer,
        "sliding": lambda: DynamicSlidingWindowLayer(config.sliding_window),
        "state": MixerState,
    }
    extra = [MixerState() for _ in config.token_mixers] if any(config.ngram_heads) else []
    return DecoderCache([makers[kind]() for kind in config.cache_layers], extra)


def check_cache(cache: Any, config: "DecoderConfig") -> None:
    """Refuse a cache that a decoder of another config has filled.

    Raises:
        PerplabError: it is one.
    """
    layers, kinds = getattr(cache, "layers", []), config.cache_layers
    has_extra = any(config.ngram_heads)
    # Attention alone is content with any cache, also one whose layers come with the first keys.
    fits = len(layers) == len(kinds) * (1 + has_extra) or (not has_extra and "state" not in kinds)
    for layer, kind in zip(layers, kinds, strict=False):
        shape = None if getattr(layer, "keys", None) is None else (layer.keys.shape[1], layer.keys.shape[-1])
        fits &= isinstance(layer, MixerState) == (kind == "state")
        fits &= shape in (None, (config.num_key_value_heads, config.head_dim))
    if not fits:
        raise PerplabError("this cache was filled by a decoder of another config", "begin with an empty cache")
