import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.kernels import Segment, SegmentTree, segment_attention, segment_attention_reference
from perplab.kernels.segment_attention import TOGETHER

LENGTHS = st.one_of(st.integers(1, 12), st.sampled_from([TOGETHER // 2, TOGETHER // 2 + 1, TOGETHER + 3]))


@st.composite
def trees(draw):
    """Rows of segments in the order in which a depth-first walk meets them."""
    segments, start, path = [], 0, []
    for _ in range(draw(st.integers(1, 8))):
        path = path[: draw(st.integers(0, len(path)))]
        end = start + draw(LENGTHS)
        path.append(len(segments))
        segments.append(Segment(start, end, path[-2] if len(path) > 1 else -1))
        start = end
    return segments


def states(tokens, heads=4, key_value_heads=2, head_dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, number, tokens, head_dim, generator=generator, dtype=torch.float64)
        for number in (heads, key_value_heads, key_value_heads)
    ]


OPTIONS = [
    {},
    {"scale": 0.7},
    {"sliding_window": 5},
    {"soft_cap": 2.0},
    {"soft_cap": 2.0, "sliding_window": 9, "scale": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@given(segments=trees())
@settings(max_examples=25)
def test_kernel_equals_the_whole_mask(segments, options):
    tree, inputs = SegmentTree(segments), states(segments[-1].end)
    ours = segment_attention(*inputs, tree, **options)
    torch.testing.assert_close(ours, segment_attention_reference(*inputs, tree, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernel_in_bfloat16_is_close_to_the_definition_in_float64(options):
    segments = [Segment(0, 40), Segment(40, 50, 0), Segment(50, 53, 0), Segment(53, 90), Segment(90, 260)]
    tree, inputs = SegmentTree(segments), states(260)
    ours = segment_attention(*(tensor.bfloat16() for tensor in inputs), tree, **options)
    torch.testing.assert_close(
        ours.double(), segment_attention_reference(*inputs, tree, **options), rtol=0.05, atol=0.05
    )


@given(segments=trees())
def test_each_way_from_the_root_is_a_sequence_of_its_own(segments):
    """What a segment computes is plain causal attention over its ancestors and itself."""
    tree, inputs = SegmentTree(segments), states(segments[-1].end, key_value_heads=4)
    ours = segment_attention(*inputs, tree)
    for segment in segments:
        way, parent = [range(segment.start, segment.end)], segment.parent
        while parent >= 0:
            way.insert(0, range(segments[parent].start, segments[parent].end))
            parent = segments[parent].parent
        places = torch.tensor([place for run in way for place in run])
        alone = torch.nn.functional.scaled_dot_product_attention(*(x[:, :, places] for x in inputs), is_causal=True)
        own = segment.end - segment.start
        torch.testing.assert_close(ours[:, :, segment.start : segment.end], alone[:, :, -own:])
        assert tree.position_ids[places].tolist() == list(range(len(places)))
