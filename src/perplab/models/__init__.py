"""What reads text: causal language models, where their parts are, and how they came to be.

`load` opens any causal LM by folder, hub id or `pocket`; `LanguageModel` keeps model, tokenizer and lineage together;
`perplab.models.anatomy` finds the parts of thirteen families; the decoder is what this package trains.

Names are imported when first used, so that a command which reads only a lineage does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.models.decoder import DecoderForCausalLM
    from perplab.models.decoder_config import DecoderConfig
    from perplab.models.language_model import LanguageModel, load, load_tokenizer
    from perplab.models.lineage import Lineage, Parent, weights_fingerprint

_HOMES = {
    "DecoderConfig": "decoder",
    "DecoderForCausalLM": "decoder",
    "LanguageModel": "language_model",
    "Lineage": "lineage",
    "Parent": "lineage",
    "load": "language_model",
    "load_tokenizer": "language_model",
    "weights_fingerprint": "lineage",
}

__all__ = [
    "DecoderConfig",
    "DecoderForCausalLM",
    "LanguageModel",
    "Lineage",
    "Parent",
    "load",
    "load_tokenizer",
    "weights_fingerprint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
