import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.kernels import BlockLayout, block_sparse_attention, block_sparse_attention_reference


def states(length, *, batch=2, heads=4, key_value_heads=2, head_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, number, length, head_dim, generator=generator, dtype=torch.float64).to(dtype)
        for number in (heads, key_value_heads, key_value_heads)
    ]


def output_and_gradients(attention, inputs, layout, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attention(*leaves, layout, **options)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [output, *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


def assert_like_reference(inputs, layout, **options):
    ours, reference = (
        output_and_gradients(attention, inputs, layout, **options)
        for attention in (block_sparse_attention, block_sparse_attention_reference)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def random_layout(length, block, heads=1, share=0.4, seed=0):
    blocks = -(-length // block)
    kept = torch.rand(heads, blocks, blocks, generator=torch.Generator().manual_seed(seed)) < share
    return BlockLayout(kept, block, length)


def dense_mask(length, seed):
    return torch.rand(length, length, generator=torch.Generator().manual_seed(seed)) < 0.02


@settings(max_examples=60)
@given(
    length=st.integers(1, 40),
    block=st.integers(1, 12),
    heads=st.sampled_from([1, 4]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_layout_agrees_with_the_dense_mask(length, block, heads, share, causal, seed):
    layout = random_layout(length, block, heads, share, seed)
    reference = block_sparse_attention_reference(*states(length), layout, causal=causal)
    assert reference.isfinite().all()
    torch.testing.assert_close(block_sparse_attention(*states(length), layout, causal=causal), reference)
    if length <= 12 or share == 0.3:
        assert_without_nan(length, layout, causal)


def assert_without_nan(length, layout, causal):
    """Gradients against automatic ones through the mask, whose softmax of nothing would be NaN, row by row."""
    inputs = states(length)
    ours = output_and_gradients(block_sparse_attention, inputs, layout, causal=causal)
    visible = layout.to_dense(causal=causal)
    bias = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e9)

    def by_bias(query, key, value, _):
        key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
        weights = torch.softmax(query @ key.mT * 8**-0.5 + bias, dim=-1)
        return weights * visible.any(dim=-1, keepdim=True) @ value

    for mine, theirs in zip(ours, output_and_gradients(by_bias, inputs, layout), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("head_dim", [8, 20, 256])
@pytest.mark.parametrize("length", [31, 32, 33])
def test_lengths_around_the_block_and_head_sizes_agree_with_the_reference(length, head_dim, causal):
    assert_like_reference(states(length, head_dim=head_dim), BlockLayout.local(length, 8, 2), causal=causal, scale=0.3)


def test_pieces_of_one_query_block_agree_with_the_reference(monkeypatch):
    monkeypatch.setattr("perplab.kernels.block_sparse.GATHERED", 1)
    assert_like_reference(states(50), BlockLayout.butterfly(50, 8))


def test_all_blocks_are_dense_attention():
    query, key, value = states(45, key_value_heads=4)
    layout = BlockLayout.local(45, 8, 99)
    for causal in (True, False):
        dense = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        torch.testing.assert_close(block_sparse_attention(query, key, value, layout, causal=causal), dense)


def test_blocks_of_one_token_below_the_diagonal_are_causal_attention():
    query, key, value = states(20, key_value_heads=4)
    layout = BlockLayout.from_dense(torch.ones(20, 20, dtype=torch.bool).tril(), 1)
    dense = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(block_sparse_attention(query, key, value, layout, causal=False), dense)


def test_queries_without_a_block_have_output_zero_and_gradient_zero():
    layout = random_layout(40, 8)
    layout.kept[:, 2] = False
    output, *grads = output_and_gradients(block_sparse_attention, states(40), layout)
    assert torch.equal(output[:, :, 16:24], torch.zeros_like(output[:, :, 16:24]))
    assert torch.equal(grads[0][:, :, 16:24], torch.zeros_like(output[:, :, 16:24]))
    assert all(grad.isfinite().all() for grad in grads)


def test_a_layout_that_keeps_nothing_gives_zero():
    nothing = BlockLayout(torch.zeros(1, 3, 3, dtype=torch.bool), 8, 20)
    for tensor in output_and_gradients(block_sparse_attention, states(20), nothing):
        assert not tensor.any()


def test_gradient_is_the_derivative():
    inputs = [tensor.requires_grad_() for tensor in states(7, batch=1, heads=2, key_value_heads=1, head_dim=3)]
    layout = BlockLayout.butterfly(7, 2)
    assert torch.autograd.gradcheck(lambda *tensors: block_sparse_attention(*tensors, layout), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_each_dtype_is_near_the_truth(dtype, tolerance):
    inputs, layout = states(70, dtype=dtype), BlockLayout.local(70, 16, 2)
    ours = block_sparse_attention(*inputs, layout)
    assert ours.dtype == dtype
    truth = block_sparse_attention_reference(*(tensor.double() for tensor in inputs), layout)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=tolerance)


def test_views_that_are_not_contiguous_give_the_same():
    inputs, layout = states(30), BlockLayout.local(30, 8, 2)
    views = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
    assert torch.equal(block_sparse_attention(*views, layout), block_sparse_attention(*inputs, layout))


def test_local_keeps_what_is_near():
    dense = BlockLayout.local(10, 2, 2).to_dense()[0]
    assert dense[5].tolist() == [False, False, True, True, True, True, True, True, False, False]


@pytest.mark.parametrize("blocks", [1, 2, 8, 16])
def test_butterfly_keeps_one_more_than_the_digits(blocks):
    kept = BlockLayout.butterfly(blocks * 4, 4).kept[0]
    assert (kept.sum(dim=1) == blocks.bit_length()).all()
    assert torch.equal(kept, kept.T)


def test_butterfly_of_another_number_of_blocks_is_the_corner_of_the_next_power():
    assert torch.equal(BlockLayout.butterfly(11, 1).kept, BlockLayout.butterfly(16, 1).kept[:, :11, :11])


def test_strided_and_global_keep_columns():
    assert BlockLayout.strided(6, 1, 3).kept[0, 5].tolist() == [False, False, True, False, False, True]
    assert BlockLayout.global_(6, 1, 2).kept[0, 3].tolist() == [True, True, False, False, False, False]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 50))
def test_a_layout_of_a_mask_keeps_exactly_the_blocks_that_show_something(length, block, seed):
    mask = dense_mask(length, seed)
    layout = BlockLayout.from_dense(mask, block)
    for row, column in torch.cartesian_prod(*[torch.arange(layout.kept.shape[1])] * 2).tolist():
        shown = mask[row * block : (row + 1) * block, column * block : (column + 1) * block].any()
        assert layout.kept[0, row, column] == shown


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 50))
def test_union_and_intersection_are_those_of_the_dense_masks(length, block, seed):
    one, other = (random_layout(length, block, seed=number) for number in (seed, seed + 1))
    assert torch.equal((one | other).to_dense(), one.to_dense() | other.to_dense())
    assert torch.equal((one & other).to_dense(), one.to_dense() & other.to_dense())


def test_a_layout_of_its_own_dense_mask_is_itself():
    layout = random_layout(30, 7, heads=3)
    assert torch.equal(BlockLayout.from_dense(layout.to_dense(), 7).kept, layout.kept)


def test_density_counts_blocks():
    layout = BlockLayout.local(40, 10, 1)
    assert layout.density() == pytest.approx(4 / 16)
    assert layout.density(causal=True) == pytest.approx(4 / 10)


@pytest.mark.parametrize("causal", [True, False])
def test_block_mask_of_torch_shows_the_same(causal):
    layout = random_layout(64, 16, heads=2)
    assert torch.equal(
        layout.to_block_mask(causal=causal).to_dense()[0].bool(), (layout.kept.tril() if causal else layout.kept)
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_with_the_block_mask_agrees():
    from torch.nn.attention.flex_attention import flex_attention

    inputs, layout = states(32, key_value_heads=4, dtype=torch.float32), BlockLayout.local(32, 8, 2)
    theirs = flex_attention(*inputs, block_mask=layout.to_block_mask(causal=True))
    torch.testing.assert_close(block_sparse_attention(*inputs, layout), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockLayout(torch.ones(1, 3, 3, dtype=torch.bool), 8, 40), "5 blocks"),
        (lambda: BlockLayout(torch.ones(1, 5, 5), 8, 40), "booleans"),
        (lambda: BlockLayout.local(40, 0, 2), "block size of 0"),
        (lambda: BlockLayout.local(0, 8, 2), "length of 0"),
        (lambda: BlockLayout.strided(40, 8, 0), "stride of 0"),
        (lambda: BlockLayout.local(40, 8, 2) | BlockLayout.local(40, 4, 2), "cannot be combined"),
        (lambda: block_sparse_attention(*states(39), BlockLayout.local(40, 8, 2)), "for 40 tokens"),
        (lambda: block_sparse_attention(*states(40), random_layout(40, 8, heads=3)), "3 heads"),
        (lambda: block_sparse_attention(*states(8, key_value_heads=3), BlockLayout.local(8, 8, 1)), "cannot share"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(PerplabError, match=message):
        make()
