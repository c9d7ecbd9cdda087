import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from perplab.errors import PerplabError
from perplab.kernels import merge_attention, tiled_attention


def states(queries, keys=None, *, batch=2, heads=4, key_value_heads=2, head_dim=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(heads, queries), *[(key_value_heads, queries if keys is None else keys)] * 2]
    return [
        torch.randn(batch, *shape, head_dim, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def textbook(query, key, value, causal=False):
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    if causal:
        mask = mask.tril(key.shape[2] - query.shape[2])
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


@settings(max_examples=60)
@given(st.integers(1, 17), st.integers(1, 17), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_tiles_of_any_size_give_the_textbook_output(queries, keys, block_q, block_k, causal):
    inputs = states(queries, max(keys, queries))
    ours, _ = tiled_attention(*inputs, block_q=block_q, block_k=block_k, causal=causal)
    torch.testing.assert_close(ours, textbook(*inputs, causal), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_each_dtype_is_as_near_the_truth_as_it_can_be(dtype, tolerance):
    inputs = states(150, dtype=dtype, head_dim=32)
    ours, _ = tiled_attention(*inputs, causal=True)
    assert ours.dtype == dtype
    truth = textbook(*(tensor.double() for tensor in inputs), True)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("head_dim", [8, 33, 256])
def test_head_sizes_give_the_textbook_output(head_dim):
    inputs = states(20, head_dim=head_dim)
    torch.testing.assert_close(tiled_attention(*inputs, block_q=8, block_k=8)[0], textbook(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("causal", [False, True])
def test_gradient_is_the_derivative_with_a_ragged_last_tile(causal, soft_cap):
    inputs = [tensor.requires_grad_() for tensor in states(7, batch=1, heads=2, key_value_heads=1)]
    options = {"block_q": 3, "block_k": 2, "causal": causal, "soft_cap": soft_cap}
    assert torch.autograd.gradcheck(lambda *tensors: tiled_attention(*tensors, **options)[0], inputs)


def test_order_of_the_keys_does_not_matter():
    query, key, value = states(9, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    plain = tiled_attention(query, key, value, block_k=6)
    moved = tiled_attention(query, key[:, :, order], value[:, :, order], block_k=6)
    for one, other in zip(plain, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@given(st.integers(1, 19))
def test_attention_over_two_halves_merges_into_that_over_the_whole(cut):
    query, key, value = states(9, 20)
    whole = tiled_attention(query, key, value)
    halves = (tiled_attention(query, key[:, :, part], value[:, :, part]) for part in (slice(cut), slice(cut, None)))
    for merged, expected in zip(merge_attention(*halves), whole, strict=True):
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-12)


def test_merging_with_what_sees_nothing_changes_nothing():
    seen = tiled_attention(*states(5))
    nothing = torch.zeros_like(seen[0]), torch.full_like(seen[1], float("-inf"))
    for merged, expected in zip(merge_attention(seen, nothing), seen, strict=True):
        torch.testing.assert_close(merged, expected)
    assert torch.equal(merge_attention(nothing, nothing)[0], nothing[0])


def test_logsumexp_is_that_of_the_scores():
    query, key, value = states(30, key_value_heads=4)
    scores = query @ key.mT * 0.5
    _, logsumexp = tiled_attention(query, key, value, block_q=7, block_k=8, scale=0.5)
    torch.testing.assert_close(logsumexp, scores.logsumexp(dim=-1), rtol=0, atol=1e-12)


def test_a_constant_added_to_all_scores_moves_the_logsumexp_alone():
    query, key, value = states(12, key_value_heads=4)
    wider_query = torch.cat((query, torch.ones_like(query[..., :1])), dim=-1)
    wider_value = torch.cat((value, torch.zeros_like(value[..., :1])), dim=-1)
    outcomes = [
        tiled_attention(
            wider_query, torch.cat((key, torch.full_like(key[..., :1], add)), dim=-1), wider_value, scale=1.0
        )
        for add in (0.0, 3.0)
    ]
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(outcomes[0][1] + 3.0, outcomes[1][1], rtol=0, atol=1e-12)


def test_large_scores_stay_finite_forward_and_backward():
    query, key, value = (tensor.requires_grad_() for tensor in states(40, dtype=torch.float32))
    output, logsumexp = tiled_attention(query, key, value, block_q=16, block_k=16, scale=1e4)
    grads = torch.autograd.grad(output.sum(), (query, key, value))
    assert all(tensor.isfinite().all() for tensor in (output, logsumexp, *grads))


def test_outputs_lie_between_the_smallest_and_the_largest_value():
    query, key, value = states(25, key_value_heads=4)
    output, _ = tiled_attention(query, key, value, block_k=4)
    low, high = value.amin(dim=2, keepdim=True), value.amax(dim=2, keepdim=True)
    assert ((output >= low - 1e-12) & (output <= high + 1e-12)).all()


def test_queries_that_see_nothing_have_output_zero_and_gradient_zero():
    inputs = [tensor.requires_grad_() for tensor in states(6, 4)]
    output, logsumexp = tiled_attention(*inputs, block_q=4, block_k=3, causal=True)
    grads = torch.autograd.grad(output.square().sum(), inputs)
    assert torch.equal(output[:, :, :2], torch.zeros_like(output[:, :, :2]))
    assert torch.equal(grads[0][:, :, :2], torch.zeros_like(grads[0][:, :, :2]))
    assert (logsumexp[:, :, :2] == float("-inf")).all()
    assert all(grad.isfinite().all() for grad in grads)
    torch.testing.assert_close(output[:, :, 2:], textbook(inputs[0][:, :, 2:], *inputs[1:], True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tile", [{"block_q": 0}, {"block_k": 0}])
def test_empty_tiles_are_refused(tile):
    with pytest.raises(PerplabError, match="holds no scores"):
        tiled_attention(*states(4), **tile)
