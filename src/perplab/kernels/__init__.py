"""Hot loops as pure tensor functions.

Beside each kernel stands its plain reference of the same signature; a test holds the two together, forward and
gradient. One function a kernel dispatches on the device.
"""

from perplab.kernels.attention import causal_attention, packed_attention, packed_attention_reference
from perplab.kernels.attention_io import AttentionCost, attention_io
from perplab.kernels.block_layout import BlockLayout
from perplab.kernels.block_sparse import block_sparse_attention, block_sparse_attention_reference
from perplab.kernels.delta_rule import delta_rule, delta_rule_attention_matrix, delta_rule_reference
from perplab.kernels.linear_attention import linear_attention, linear_attention_reference
from perplab.kernels.linear_cross_entropy import (
    LinearCrossEntropy,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    softmax_gradient,
)
from perplab.kernels.phase_rotation import phase_rotation, phase_rotation_reference
from perplab.kernels.segment_attention import Segment, SegmentTree, segment_attention, segment_attention_reference
from perplab.kernels.tiled_attention import merge_attention, tiled_attention

__all__ = [
    "AttentionCost",
    "BlockLayout",
    "LinearCrossEntropy",
    "Segment",
    "SegmentTree",
    "attention_io",
    "block_sparse_attention",
    "block_sparse_attention_reference",
    "causal_attention",
    "delta_rule",
    "delta_rule_attention_matrix",
    "delta_rule_reference",
    "linear_attention",
    "linear_attention_reference",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "merge_attention",
    "packed_attention",
    "packed_attention_reference",
    "phase_rotation",
    "phase_rotation_reference",
    "segment_attention",
    "segment_attention_reference",
    "softmax_gradient",
    "tiled_attention",
]
