"""perplab: a laboratory for language models whose one instrument is surprisal, what every token costs.

The public names below are imported when first used, so that `import perplab` is cheap.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perplab.errors import PerplabError
    from perplab.models import LanguageModel, Lineage, load
    from perplab.models.generation import GenerateConfig, generate
    from perplab.scoring import TokenScores, score
    from perplab.text import Corpus, open_corpus
    from perplab.training import TrainConfig, train

_HOMES = {
    "Corpus": "perplab.text",
    "GenerateConfig": "perplab.models.generation",
    "LanguageModel": "perplab.models",
    "Lineage": "perplab.models",
    "PerplabError": "perplab.errors",
    "TokenScores": "perplab.scoring",
    "TrainConfig": "perplab.training",
    "generate": "perplab.models.generation",
    "load": "perplab.models",
    "open_corpus": "perplab.text",
    "score": "perplab.scoring",
    "train": "perplab.training",
}

__all__ = [
    "Corpus",
    "GenerateConfig",
    "LanguageModel",
    "Lineage",
    "PerplabError",
    "TokenScores",
    "TrainConfig",
    "generate",
    "load",
    "open_corpus",
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
