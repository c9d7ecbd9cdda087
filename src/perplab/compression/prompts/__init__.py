"""Prompts that repair a compressed model: vectors in front of the input, of which each text gets those that suit it.

`prompt` trains them, as `PromptConfig` says, and returns a causal LM that reads after them, a `DynamicPrompting`;
`SoftPromptPool` holds them.

Names are imported when first used, so that a command's help does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.compression.prompts.config import PromptConfig
    from perplab.compression.prompts.pool import SoftPromptPool
    from perplab.compression.prompts.prompted_config import PromptedConfig
    from perplab.compression.prompts.prompted_model import DynamicPrompting
    from perplab.compression.prompts.prompting import prompt

_HOMES = {
    "DynamicPrompting": "prompted_model",
    "PromptConfig": "config",
    "PromptedConfig": "prompted_config",
    "SoftPromptPool": "pool",
    "prompt": "prompting",
}

__all__ = ["DynamicPrompting", "PromptConfig", "PromptedConfig", "SoftPromptPool", "prompt"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
