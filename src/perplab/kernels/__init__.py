"""Hot loops as pure tensor functions.

Beside each kernel stands its plain reference of the same signature; a test holds the two together, forward and
gradient. One function a kernel dispatches on the device.
"""

from perplab.kernels.attention import causal_attention, packed_attention, packed_attention_reference
from perplab.kernels.linear_cross_entropy import (
    LinearCrossEntropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    softmax_gradient,
)
from perplab.kernels.segment_attention import Segment, SegmentTree, segment_attention, segment_attention_reference

__all__ = [
    "LinearCrossEntropy",
    "Segment",
    "SegmentTree",
    "causal_attention",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "packed_attention",
    "packed_attention_reference",
    "segment_attention",
    "segment_attention_reference",
    "softmax_gradient",
]
