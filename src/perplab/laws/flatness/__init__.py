"""Flatness: how fast the loss rises around a model, which tells models of equal loss apart (arXiv 2210.14199).

`measure_flatness` does all of it for one model and text. Of its parts, `hessian_trace` estimates the trace of the
curvature, `top_eigenvalues` its sharpest directions, and `sharpness_profile` the loss along random ones. All of it
compares within one architecture: `widen` brings a small model into a larger one.
"""

from perplab.laws.flatness.batches import Batch
from perplab.laws.flatness.estimate import TraceEstimate
from perplab.laws.flatness.measuring import Flatness, FlatnessConfig, measure_flatness, why_not_comparable
from perplab.laws.flatness.profile import ProfilePoint, sharpness_profile
from perplab.laws.flatness.reading import TextBatches, read_batches
from perplab.laws.flatness.spectrum import Spectrum, top_eigenvalues
from perplab.laws.flatness.trace import TraceMethod, hessian_trace
from perplab.laws.flatness.widening import widen

__all__ = [
    "Batch",
    "Flatness",
    "FlatnessConfig",
    "ProfilePoint",
    "Spectrum",
    "TextBatches",
    "TraceEstimate",
    "TraceMethod",
    "hessian_trace",
    "measure_flatness",
    "read_batches",
    "sharpness_profile",
    "top_eigenvalues",
    "why_not_comparable",
    "widen",
]
