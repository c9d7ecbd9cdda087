import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.kernels import causal_attention, packed_attention, packed_attention_reference
from perplab.kernels.attention import _cpu_attention, _cpu_attention_backward
from perplab.kernels.blocked_attention import query_block

QUERY_BLOCK = query_block(torch.float64)
OPTIONS = [
    {},
    {"scale": 0.7},
    {"sliding_window": 1},
    {"sliding_window": 5},
    {"soft_cap": 2.0},
    {"soft_cap": 2.0, "sliding_window": 9, "scale": 0.3},
]
LENGTHS = [1, QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 7]


@pytest.fixture(autouse=True, params=["blocked", "flash", "chosen"])
def path(request, monkeypatch):
    """Every test holds on either path, whatever the dtype, and on the one that is chosen."""
    if request.param != "chosen":
        lengths = range(10**6 if request.param == "blocked" else 0)
        monkeypatch.setattr("perplab.kernels.attention.blocked_lengths", lambda dtype, needs_gradient: lengths)


def positions(*rows):
    """Position ids of rows given as the lengths of their documents."""
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def states(batch, heads, key_value_heads, length, head_dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, number, length, head_dim, generator=generator, dtype=torch.float64).to(dtype)
        for number in (heads, key_value_heads, key_value_heads)
    ]


def output_and_gradients(attention, inputs, position_ids, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = attention(*leaves, position_ids, **options)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [output, *torch.autograd.grad(output, leaves, upstream.to(output.dtype))]


def assert_like_reference(inputs, position_ids, options=None, **tolerance):
    ours, reference = (
        output_and_gradients(attention, inputs, position_ids, **(options or {}))
        for attention in (packed_attention, packed_attention_reference)
    )
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


layouts = st.integers(1, 60).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(1, length), min_size=1, max_size=5).map(
            lambda pieces: [*_cut(pieces, length)],
        ),
        min_size=1,
        max_size=3,
    )
)


def _cut(pieces, length):
    """Document lengths that fill a row: the pieces, cut off or filled up."""
    for piece in pieces:
        piece = min(piece, length)
        if piece:
            yield piece
        length -= piece
    if length:
        yield length


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.sampled_from([1, 2, 4]), st.sampled_from(OPTIONS))
def test_any_layout_of_documents_agrees_with_the_reference(rows, groups, options):
    position_ids = positions(*rows)
    inputs = states(len(rows), 4, 4 // groups, position_ids.shape[1])
    assert_like_reference(inputs, position_ids, options, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_options_hold_around_the_query_block(length, options):
    assert_like_reference(states(1, 2, 1, length), positions([length]), options, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [QUERY_BLOCK - 1, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK, 1000])
def test_windows_around_the_query_block_agree_with_the_reference(window):
    inputs = states(1, 2, 2, 3 * QUERY_BLOCK + 5)
    options = {"sliding_window": window}
    assert_like_reference(inputs, positions([3 * QUERY_BLOCK + 5]), options, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head_dim", [8, 17, 64, 256])
def test_head_sizes_agree_with_the_reference(head_dim):
    inputs = states(1, 2, 1, 90, head_dim)
    assert_like_reference(inputs, positions([90]), rtol=0, atol=1e-12)
    assert_like_reference(inputs, positions([90]), {"sliding_window": 20}, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_around_the_query_block_agree_with_the_reference(length, groups):
    assert_like_reference(states(2, 4, 4 // groups, length), positions([length], [length]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scores", [1, QUERY_BLOCK * 300])
def test_heads_taken_a_few_at_a_time_agree_with_the_reference(monkeypatch, scores):
    monkeypatch.setattr("perplab.kernels.blocked_attention.CACHED_BYTES", 8 * scores)
    assert_like_reference(states(2, 4, 2, 270), positions([270], [130, 140]), rtol=0, atol=1e-12)


def test_float32_agrees_with_the_reference_to_its_precision():
    inputs = states(2, 4, 2, 200, dtype=torch.float32)
    assert_like_reference(inputs, positions([200], [60, 140]), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_little_further_from_the_truth_than_the_reference_in_bfloat16():
    position_ids = positions([300], [170, 130])
    exact = states(2, 4, 2, 300, head_dim=64, dtype=torch.bfloat16)
    truth = output_and_gradients(packed_attention_reference, [tensor.double() for tensor in exact], position_ids)
    ours = output_and_gradients(packed_attention, exact, position_ids)
    reference = output_and_gradients(packed_attention_reference, exact, position_ids)
    for mine, theirs, true in zip(ours, reference, truth, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).norm() <= 1.25 * (theirs - true).norm()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_float16_is_the_float32_result_rounded(options):
    inputs, position_ids = states(1, 2, 1, 60, dtype=torch.float16), positions([25, 35])
    ours = output_and_gradients(packed_attention, inputs, position_ids, **options)
    wide = output_and_gradients(packed_attention, [tensor.float() for tensor in inputs], position_ids, **options)
    for mine, exact in zip(ours, wide, strict=True):
        assert mine.dtype == torch.float16
        torch.testing.assert_close(mine.float(), exact, rtol=2e-3, atol=2e-3)


def test_attention_without_gradient_is_the_same():
    inputs, position_ids = states(1, 2, 2, 200, dtype=torch.bfloat16), positions([200])
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with_gradient = packed_attention(*leaves, position_ids)
    with torch.no_grad():
        without, causal = packed_attention(*leaves, position_ids), causal_attention(*leaves)
    torch.testing.assert_close(without, causal, rtol=0, atol=0)
    torch.testing.assert_close(with_gradient, without, rtol=0.02, atol=0.02)


def test_large_scores_stay_finite():
    query, key, value = states(1, 1, 1, 100)
    for tensor in output_and_gradients(packed_attention, (100 * query, 100 * key, value), positions([100])):
        assert tensor.isfinite().all()


def test_views_that_are_not_contiguous_give_the_same():
    inputs = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in states(2, 4, 2, 70)]
    assert not inputs[0].is_contiguous()
    assert_like_reference(inputs, positions([70], [30, 40]), rtol=0, atol=1e-12)


def test_rows_without_tokens_give_rows_without_tokens():
    empty = torch.zeros(2, 2, 0, 8)
    assert packed_attention(empty, empty, empty, torch.zeros(2, 0, dtype=torch.long)).shape == (2, 2, 0, 8)


def test_heads_that_do_not_divide_are_refused():
    query, key, value = states(1, 4, 3, 5)
    with pytest.raises(PerplabError, match="4 query heads cannot share 3"):
        packed_attention(query, key, value, positions([5]))


def test_heads_of_different_sizes_are_refused():
    query, key, value = states(1, 2, 2, 5)
    with pytest.raises(PerplabError, match="one head size"):
        packed_attention(query, key[..., :4], value[..., :4], positions([5]))


@pytest.mark.parametrize("option", [{"sliding_window": 0}, {"soft_cap": 0.0}, {"soft_cap": -1.0}])
def test_windows_and_caps_that_mean_nothing_are_refused(option):
    with pytest.raises(PerplabError):
        packed_attention(*states(1, 2, 2, 5), positions([5]), **option)


def test_documents_do_not_see_each_other():
    rows = ([40, 150, 60], [250])
    inputs, position_ids = states(2, 4, 2, 250), positions(*rows)
    document = slice(40, 190)
    changed = [tensor.clone() for tensor in inputs]
    for tensor in changed:
        tensor[0, :, document] += 1.0
    before, after = (output_and_gradients(packed_attention, tensors, position_ids) for tensors in (inputs, changed))
    for old, new in zip(before, after, strict=True):
        moved = (old != new).any(dim=-1).any(dim=1)
        assert moved[0, document].any()
        moved[0, document] = False
        assert not moved.any()


def test_later_tokens_do_not_change_earlier_outputs():
    inputs, position_ids = states(1, 2, 2, 200), positions([200])
    changed = [tensor.clone() for tensor in inputs]
    for tensor in changed:
        tensor[:, :, 150:] += 1.0
    before, after = (packed_attention(*tensors, position_ids) for tensors in (inputs, changed))
    assert torch.equal(before[:, :, :150], after[:, :, :150])


def test_row_that_begins_inside_a_document_is_read_from_its_first_column():
    inputs = states(1, 2, 2, 20)
    inside = torch.cat([torch.arange(5, 17), torch.arange(8)])[None]
    outputs = [attention(*inputs, inside) for attention in (packed_attention, packed_attention_reference)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def test_equal_keys_give_the_running_mean_of_the_values():
    query, key, value = states(1, 1, 1, 200)
    mean = value.cumsum(dim=2) / torch.arange(1, 201)[:, None]
    torch.testing.assert_close(packed_attention(query, torch.zeros_like(key), value, positions([200])), mean)


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
def test_gradient_is_the_derivative(options):
    inputs = [tensor.requires_grad_() for tensor in states(2, 2, 1, 5, head_dim=3)]
    position_ids = positions([5], [2, 3])
    assert torch.autograd.gradcheck(lambda *tensors: packed_attention(*tensors, position_ids, **options), inputs)


def test_position_ids_are_left_as_they_were():
    position_ids = torch.arange(3, 9)[None]
    packed_attention(*states(1, 2, 2, 6), position_ids)
    assert torch.equal(position_ids, torch.arange(3, 9)[None])


@pytest.mark.parametrize("scoring", [(0.3, None, None), (0.3, 3, 2.0)])
def test_operators_keep_the_contract_of_torch(scoring):
    position_ids = positions([9], [4, 5])
    inputs = states(2, 2, 2, 9)
    torch.library.opcheck(_cpu_attention, (*inputs, position_ids, *scoring, False))
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.library.opcheck(_cpu_attention, (*leaves, position_ids, *scoring, True))
    inputs = [tensor.detach() for tensor in inputs]
    output, logsumexp = _cpu_attention(*inputs, position_ids, *scoring, True)
    saved = (output, logsumexp, position_ids, *scoring)
    torch.library.opcheck(_cpu_attention_backward, (torch.ones_like(output), *inputs, *saved))


def test_transposed_inputs_under_compilation_give_the_same_output_and_gradients():
    def attend(query, key, value, position_ids):
        query, key, value = (tensor.transpose(1, 2) * 1.5 for tensor in (query, key, value))
        return packed_attention(query, key, value, position_ids).transpose(1, 2)

    inputs = [tensor.transpose(1, 2).contiguous() for tensor in states(2, 4, 2, 150)]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for eager, graph in zip(
        output_and_gradients(attend, inputs, positions([150], [20, 130])),
        output_and_gradients(compiled, inputs, positions([150], [20, 130])),
        strict=True,
    ):
        assert torch.equal(eager, graph)
