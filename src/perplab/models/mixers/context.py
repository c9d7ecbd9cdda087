"""What every layer of one forward pass shares."""

from typing import Any, NamedTuple

from torch import Tensor

from perplab.models.mixer_cache import MixerState


class SequenceContext(NamedTuple):
    """The sequences that pass through the blocks.

    Rows are of one of two kinds. Packed rows hold documents side by side: nothing is cached, nothing is padding, and a
    position of 0 opens a document that sees nothing before it. Other rows are one sequence each, which may continue
    what is in the cache and may be padded on either side.
    """

    position_ids: Tensor
    """(batch, length)."""
    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines, each (batch, length, head_dim); None where positions are not rotary."""
    packed: bool
    """Whether rows are packed."""
    attention_mask: Tensor | None
    """(batch, 1, length, cached + length) booleans, true where a query may look; None in packed rows, and where no
    layer of the decoder attends."""
    real: Tensor | None
    """(batch, length) booleans, false where a token is padding; None where none is."""
    cache: Any
    """A `transformers` cache, or None."""
    input_ids: Tensor | None
    """(batch, length); None where the caller gave embeddings."""

    def state(self, layer_index: int) -> MixerState | None:
        """What the token mixer of a layer keeps; None without a cache."""
        return None if self.cache is None else self.cache.layers[layer_index]

    def extra_state(self, layer_index: int) -> MixerState | None:
        """What the n-gram heads of a layer keep; None without a cache."""
        return None if self.cache is None else self.cache.extra_layers[layer_index]
