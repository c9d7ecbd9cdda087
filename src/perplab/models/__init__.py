"""What reads text: causal language models, where their parts are, and how they came to be.

`load` opens any causal LM by folder, hub id or `pocket`; `LanguageModel` keeps model, tokenizer and lineage together;
`perplab.models.anatomy` finds the parts of thirteen families; the decoder is what this package trains, with the token
mixers that its config names.

Names are imported when first used, so that a command which reads only a lineage does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.models.attention_interface import sparse_attention
    from perplab.models.complex_conversion import convert_to_complex
    from perplab.models.decoder import DecoderForCausalLM
    from perplab.models.decoder_config import DecoderConfig
    from perplab.models.language_model import LanguageModel, load, load_tokenizer
    from perplab.models.lineage import Lineage, Parent, weights_fingerprint
    from perplab.models.ngram_insertion import insert_ngram_heads

_HOMES = {
    "DecoderConfig": "decoder",
    "DecoderForCausalLM": "decoder",
    "LanguageModel": "language_model",
    "Lineage": "lineage",
    "Parent": "lineage",
    "convert_to_complex": "complex_conversion",
    "insert_ngram_heads": "ngram_insertion",
    "load": "language_model",
    "load_tokenizer": "language_model",
    "sparse_attention": "attention_interface",
    "weights_fingerprint": "lineage",
}

__all__ = [
    "DecoderConfig",
    "DecoderForCausalLM",
    "LanguageModel",
    "Lineage",
    "Parent",
    "convert_to_complex",
    "insert_ngram_heads",
    "load",
    "load_tokenizer",
    "sparse_attention",
    "weights_fingerprint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
