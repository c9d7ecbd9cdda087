"""The papers, by name. A paper is a module of this package that defines `PAPER`; it is imported when asked for."""

from importlib import import_module

from perplab.claims.claim import Paper
from perplab.errors import PerplabError

_NAMES = (
    "scaling_over_training",
    "scaling_ladder",
    "implicit_bias_flatness",
    "continual_pretraining",
    "radd",
    "quantease",
    "quantization_evaluation",
    "fusegpt",
    "inference_time_dynamic_prompting",
    "flash_attention",
    "deltanet",
    "complexformer",
    "in_context_language_learning",
    "sparse_spectral_training",
)


def paper_names() -> tuple[str, ...]:
    """Names of all papers."""
    return _NAMES


def find_paper(name: str) -> Paper:
    """The paper of a name.

    Raises:
        PerplabError: there is none.
    """
    if name not in _NAMES:
        raise PerplabError(f"no claims are known as {name!r}", f"choose from {', '.join(_NAMES)}")
    paper: Paper = import_module(f"perplab.claims.{name}").PAPER
    return paper
