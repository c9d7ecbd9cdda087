"""Masked ("absorbing") diffusion: a language model that fills in hidden tokens in any order.

`DiffusionModel` is the network, which has no input for time; `AbsorbingDiffusion` makes a diffusion model of it, or of
any other network that maps ids to logits, such as a masked language model of `transformers`. `losses` has the four
losses, `ao_bound` the upper bound on perplexity, `sample` generates around whatever tokens are given, and
`expected_nfe` says how often the network is asked. `conditioned` holds the baselines that know the time.
"""

from perplab.models.diffusion.absorbing import AbsorbingDiffusion
from perplab.models.diffusion.bound import AnyOrderBound, ao_bound, order_nll
from perplab.models.diffusion.config import DiffusionConfig
from perplab.models.diffusion.network import DiffusionModel
from perplab.models.diffusion.sampling import Samples, SamplingConfig, sample
from perplab.models.diffusion.schedules import Cosine, Geometric, LogLinear, Schedule
from perplab.models.diffusion.unmasking import expected_nfe, reveal_steps

__all__ = [
    "AbsorbingDiffusion",
    "AnyOrderBound",
    "Cosine",
    "DiffusionConfig",
    "DiffusionModel",
    "Geometric",
    "LogLinear",
    "Samples",
    "SamplingConfig",
    "Schedule",
    "ao_bound",
    "expected_nfe",
    "order_nll",
    "reveal_steps",
    "sample",
]
