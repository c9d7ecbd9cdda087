import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.kernels import BlockLayout, attention_io


class SlowMemory:
    """Matrices whose rows are counted when they are read or written."""

    def __init__(self, **widths):
        self.widths = widths
        self.moved = 0

    def move(self, name, rows):
        self.moved += self.widths[name] * len(rows)


def tiles(length, block):
    return [range(start, min(start + block, length)) for start in range(0, length, block)]


def visible(mask, rows, columns):
    return bool(mask[rows.start : rows.stop, columns.start : columns.stop].any())


def run_flash1(length, head_dim, block_q, block_k, mask):
    memory, scores = SlowMemory(q=head_dim, k=head_dim, v=head_dim, o=head_dim, m=1, l=1), 0
    for columns in tiles(length, block_k):
        if not mask[:, columns.start : columns.stop].any():
            continue
        memory.move("k", columns)
        memory.move("v", columns)
        for rows in tiles(length, block_q):
            if visible(mask, rows, columns):
                for name in ("q", "o", "m", "l", "o", "m", "l"):
                    memory.move(name, rows)
                scores += len(rows) * len(columns)
    return memory.moved, 4 * scores * head_dim


def run_flash2(length, head_dim, block_q, block_k, mask):
    memory, scores = SlowMemory(q=head_dim, k=head_dim, v=head_dim, o=head_dim, logsumexp=1), 0
    for rows in tiles(length, block_q):
        if not mask[rows.start : rows.stop].any():
            continue
        memory.move("q", rows)
        for columns in tiles(length, block_k):
            if visible(mask, rows, columns):
                memory.move("k", columns)
                memory.move("v", columns)
                scores += len(rows) * len(columns)
        memory.move("o", rows)
        memory.move("logsumexp", rows)
    return memory.moved, 4 * scores * head_dim


RUNS = {"flash1": run_flash1, "flash2": run_flash2}


@settings(max_examples=80)
@given(
    algorithm=st.sampled_from(list(RUNS)),
    length=st.integers(1, 60),
    head_dim=st.integers(1, 9),
    blocks=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    causal=st.booleans(),
)
def test_counts_equal_those_of_a_loop_that_counts(algorithm, length, head_dim, blocks, causal):
    mask = torch.ones(length, length, dtype=torch.bool)
    counted = RUNS[algorithm](length, head_dim, *blocks, mask.tril() if causal else mask)
    cost = attention_io(length, head_dim, algorithm, block_q=blocks[0], block_k=blocks[1], causal=causal)
    assert (cost.elements, cost.flops) == counted


@settings(max_examples=40)
@given(
    algorithm=st.sampled_from(list(RUNS)),
    length=st.integers(1, 60),
    block=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_counts_of_a_layout_equal_those_of_a_loop_that_counts(algorithm, length, block, causal, seed):
    blocks = -(-length // block)
    kept = torch.rand(1, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < 0.4
    layout = BlockLayout(kept, block, length)
    counted = RUNS[algorithm](length, 5, block, block, layout.to_dense(causal=causal)[0])
    cost = attention_io(length, 5, algorithm, causal=causal, layout=layout)
    assert (cost.elements, cost.flops) == counted


def test_counts_at_a_thousand_tokens():
    counts = [
        attention_io(1024, 64, "standard").elements,
        attention_io(1024, 64, "flash1", fast_memory=51_200).elements,
        attention_io(1024, 64, "flash2").elements,
        attention_io(1024, 64, "flash2", causal=True).elements,
    ]
    assert counts == [4_456_448, 1_335_296, 1_180_672, 721_920]


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_what_flash_moves_is_of_the_order_of_squared_length_times_squared_width_over_memory(head_dim):
    shares = []
    for length in (1024, 4096, 16_384):
        for memory in (4 * head_dim**2, 16 * head_dim**2, length * head_dim):
            elements = attention_io(length, head_dim, "flash1", fast_memory=memory).elements
            shares.append(elements * memory / (length * head_dim) ** 2)
    assert max(shares) < 20
    assert min(shares) > 4


def test_sparse_layouts_move_less_the_less_they_keep():
    layouts = [BlockLayout.local(2048, 64, width) for width in (1, 2, 4, 8, 16, 32)]
    for algorithm in RUNS:
        moved = [attention_io(2048, 64, algorithm, layout=layout).elements for layout in layouts]
        assert moved == sorted(moved)
        assert len(set(moved)) == len(moved)


def test_causal_attention_computes_half():
    whole, half = (attention_io(4096, 64, "flash2", causal=causal).flops for causal in (False, True))
    assert whole == 4 * 4096**2 * 64
    assert half / whole == pytest.approx(0.5, abs=0.02)


def test_roofline_is_the_slower_of_moving_and_computing():
    cost = attention_io(1024, 64, "flash2")
    assert cost.seconds(bandwidth=1e9, flops_per_second=1e30) == cost.elements * 2 / 1e9
    assert cost.seconds(bandwidth=1e30, flops_per_second=1e9) == cost.flops / 1e9
    assert cost.backward_flops == 2.5 * cost.flops


@pytest.mark.parametrize(
    "arguments",
    [
        {"length": 0},
        {"head_dim": 0},
        {"block_q": 0},
        {"fast_memory": 255},
        {"layout": BlockLayout.local(32, 8, 1)},
        {"layout": BlockLayout(torch.ones(2, 8, 8, dtype=torch.bool), 8, 64)},
        {"algorithm": "standard", "layout": BlockLayout.local(64, 8, 1)},
    ],
)
def test_what_cannot_be_counted_is_refused(arguments):
    with pytest.raises(PerplabError):
        attention_io(**({"length": 64, "head_dim": 64, "algorithm": "flash2"} | arguments))
