"""Runs to the least loss that a language allows, and along the models that share it (arXiv 2210.14199).

`saturate` trains a model on fresh sentences until what it costs above the language's entropy is below a bound; `forked`
goes on from there by several algorithms and lets all of them settle the same way; `excess_loss` says how near the floor
a model is. `label_noise_descent` and `rank_one_flow` are the theory's own case, where everything has a closed form.
"""

from perplab.laws.saturation.algorithms import Adversary, Algorithm, descend
from perplab.laws.saturation.excess import Excess, excess_loss
from perplab.laws.saturation.log_bilinear import (
    bilinear_excess,
    bilinear_trace,
    exact_descent,
    label_noise_descent,
    rank_one_flow,
)
from perplab.laws.saturation.runs import ForkConfig, Saturation, SaturationConfig, forked, saturate

__all__ = [
    "Adversary",
    "Algorithm",
    "Excess",
    "ForkConfig",
    "Saturation",
    "SaturationConfig",
    "bilinear_excess",
    "bilinear_trace",
    "descend",
    "exact_descent",
    "excess_loss",
    "forked",
    "label_noise_descent",
    "rank_one_flow",
    "saturate",
]
