"""perplab: a laboratory for language models whose one instrument is surprisal, what every token costs.

The public names below are imported when first used, so that `import perplab` is cheap.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.compression import FuseConfig, PromptConfig, QuantizeConfig, fuse, prompt, quantize
    from perplab.errors import PerplabError
    from perplab.evaluation.comparing import CompareConfig, compare
    from perplab.evaluation.suite import EvaluateConfig, evaluate
    from perplab.laws.flatness import FlatnessConfig, measure_flatness
    from perplab.models import LanguageModel, Lineage, load
    from perplab.models.generation import GenerateConfig, generate
    from perplab.scoring import TokenScores, score
    from perplab.scoring.explain import explain
    from perplab.scoring.perplexity import Perplexity, perplexity
    from perplab.text import Corpus, open_corpus
    from perplab.training import TrainConfig, train

_HOMES = {
    "CompareConfig": "perplab.evaluation.comparing",
    "Corpus": "perplab.text",
    "EvaluateConfig": "perplab.evaluation.suite",
    "FlatnessConfig": "perplab.laws.flatness",
    "FuseConfig": "perplab.compression",
    "GenerateConfig": "perplab.models.generation",
    "LanguageModel": "perplab.models",
    "Lineage": "perplab.models",
    "PerplabError": "perplab.errors",
    "TokenScores": "perplab.scoring",
    "Perplexity": "perplab.scoring.perplexity",
    "PromptConfig": "perplab.compression",
    "QuantizeConfig": "perplab.compression",
    "TrainConfig": "perplab.training",
    "compare": "perplab.evaluation.comparing",
    "evaluate": "perplab.evaluation.suite",
    "explain": "perplab.scoring.explain",
    "fuse": "perplab.compression",
    "generate": "perplab.models.generation",
    "load": "perplab.models",
    "measure_flatness": "perplab.laws.flatness",
    "open_corpus": "perplab.text",
    "perplexity": "perplab.scoring.perplexity",
    "prompt": "perplab.compression",
    "quantize": "perplab.compression",
    "score": "perplab.scoring",
    "train": "perplab.training",
}

__all__ = [
    "CompareConfig",
    "Corpus",
    "EvaluateConfig",
    "FlatnessConfig",
    "FuseConfig",
    "GenerateConfig",
    "LanguageModel",
    "Lineage",
    "PerplabError",
    "Perplexity",
    "PromptConfig",
    "QuantizeConfig",
    "TokenScores",
    "TrainConfig",
    "compare",
    "evaluate",
    "explain",
    "fuse",
    "generate",
    "load",
    "measure_flatness",
    "open_corpus",
    "perplexity",
    "prompt",
    "quantize",
    "score",
    "train",
]

try:
    __version__ = version("perplab")
except PackageNotFoundError:  # run from a source folder that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'perplab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
