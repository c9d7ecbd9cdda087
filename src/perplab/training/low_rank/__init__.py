"""Training a few numbers at a time: LoRA, ReLoRA, GaLore and sparse spectral training under one engine.

`apply_low_rank` puts a model's linear layers under a method, a training loop calls the `LowRankTraining` it returns,
and `merge_low_rank` gives back a plain model. `spectrum` and `truncate` look at singular values of any model.
"""

from perplab.training.low_rank.config import LowRankConfig, LowRankMethod
from perplab.training.low_rank.method import LowRankTraining, apply_low_rank
from perplab.training.low_rank.replacing import merge_low_rank
from perplab.training.low_rank.spectra import Spectrum, spectrum, truncate

__all__ = [
    "LowRankConfig",
    "LowRankMethod",
    "LowRankTraining",
    "Spectrum",
    "apply_low_rank",
    "merge_low_rank",
    "spectrum",
    "truncate",
]
