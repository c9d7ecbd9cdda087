"""Smaller models: weights in fewer bits, fewer blocks, and prompts that repair what that broke.

`quantize` rounds weights to a grid, with the solver of your choice, so that each layer's output changes least; `fuse`
takes whole blocks out and lets their neighbours make up for them; `prompt` trains vectors in front of the input.

Names are imported when first used, so that one verb does not pay for what another needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.compression.fusion.config import FuseConfig
    from perplab.compression.fusion.fuse import fuse
    from perplab.compression.prompts import PromptConfig, prompt
    from perplab.compression.quantize_config import QuantizeConfig
    from perplab.compression.quantizing import quantize

_HOMES = {
    "FuseConfig": "fusion.config",
    "PromptConfig": "prompts",
    "QuantizeConfig": "quantize_config",
    "fuse": "fusion.fuse",
    "prompt": "prompts",
    "quantize": "quantizing",
}

__all__ = ["FuseConfig", "PromptConfig", "QuantizeConfig", "fuse", "prompt", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
