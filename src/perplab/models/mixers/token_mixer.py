"""What all token mixers have in common."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "attention_output": "o_proj"}

CacheLayer = Literal["attention", "sliding", "state"]


class TokenMixer(nn.Module):
    """Base of the token mixers; the package's docstring says how one is built and called."""

    cache_layer: ClassVar[CacheLayer] = "attention"
    """What a layer keeps of the tokens it has seen: all keys and values, those of a window, or a state."""
    projections: ClassVar[Mapping[str, str]] = _ATTENTION
    """Role, as in `perplab.models.anatomy`, to attribute."""
    options_class: ClassVar[type | None] = None
    """A frozen dataclass: the settings of this mixer alone."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Parameters that weight decay leaves alone."""
