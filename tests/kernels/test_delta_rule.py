import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from perplab.errors import PerplabError
from perplab.kernels import delta_rule, delta_rule_attention_matrix, delta_rule_reference, linear_attention
from perplab.kernels.chunk_scan import unit_lower_inverse
from perplab.kernels.chunkwise_state import chunkwise_state

BORDERS = (0, 5, 6, 30)


def inputs(batch=2, heads=3, length=37, key_dim=8, value_dim=5, dtype=torch.float64, seed=0):
    """Unit queries and keys, values, and strengths between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        F.normalize(torch.randn(batch, heads, length, key_dim, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    value = torch.randn(batch, heads, length, value_dim, generator=generator, dtype=torch.float64)
    beta = torch.rand(batch, heads, length, generator=generator, dtype=torch.float64)
    return [states.to(dtype) for states in (query, key, value, beta)]


def extras(names, query, value):
    """The optional inputs of some names."""
    generator = torch.Generator().manual_seed(1)
    batch, heads, length, key_dim = query.shape
    made = {}
    if "decay" in names:
        made["decay"] = -torch.rand(batch, heads, length, generator=generator, dtype=torch.float64).to(query.dtype)
    if "initial_state" in names:
        made["initial_state"] = torch.randn(
            batch, heads, key_dim, value.shape[-1], generator=generator, dtype=torch.float64
        ).to(query.dtype)
    if "position_ids" in names:
        ends = [*(border for border in BORDERS if border < length), length]
        position_ids = torch.cat([torch.arange(b - a) for a, b in pairwise(ends)])
        made["position_ids"] = torch.stack([position_ids, torch.arange(length)])[:batch]
    return made


def results(function, given, optional, **options):
    """Output, final state, and gradients of everything that can have one, for random gradients of the two."""
    leaves = [states.detach().requires_grad_() for states in given]
    optional = {name: states.detach().requires_grad_(states.is_floating_point()) for name, states in optional.items()}
    output, state = function(*leaves, **optional, **options)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in (output, state)]
    total = sum((part * weight.to(output.dtype)).sum() for part, weight in zip((output, state), weights, strict=True))
    wanted = [*leaves, *(states for states in optional.values() if states.requires_grad)]
    return [output, state, *torch.autograd.grad(total, wanted)]


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("names", ["", "decay", "position_ids", "initial_state", "decay position_ids initial_state"])
@pytest.mark.parametrize(("length", "chunk_size"), [(37, 1), (37, 16), (64, 64), (70, 32), (37, 37), (130, None)])
def test_chunks_give_the_recurrence_and_its_gradients(names, length, chunk_size):
    given = inputs(length=length)
    optional = extras(names, given[0], given[2])
    expected = results(delta_rule_reference, given, optional)
    for found, wanted in zip(results(chunkwise_state, given, optional, chunk_size=chunk_size), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 70),
    length=st.integers(1, 40),
    key_dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    chunk_size=st.sampled_from([1, 3, 8, 16, 48]),
)
def test_any_shape_gives_the_recurrence(batch, heads, length, key_dim, value_dim, chunk_size):
    given = inputs(batch, heads, length, key_dim, value_dim)
    for found, wanted in zip(chunkwise_state(*given, chunk_size=chunk_size), delta_rule_reference(*given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "output_error", "gradient_error"), [(torch.float32, 2e-6, 5e-6), (torch.bfloat16, 6e-3, 8e-3)]
)
@pytest.mark.parametrize("names", ["", "decay position_ids"])
def test_narrow_inputs_give_what_their_values_give_in_float64(names, dtype, output_error, gradient_error):
    given = inputs(length=150, key_dim=32, value_dim=32, dtype=dtype)
    optional = extras(names, given[0], given[2])
    wide = {name: states.double() if states.is_floating_point() else states for name, states in optional.items()}
    expected = results(delta_rule_reference, [states.double() for states in given], wide)
    found = results(delta_rule, given, optional)
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    errors = [relative_error(one, other) for one, other in zip(found, expected, strict=True)]
    assert max(errors[:2]) < output_error
    assert max(errors[2:]) < gradient_error


def test_it_is_the_gated_delta_rule_of_transformers():
    query, key, value, beta = inputs(length=150, key_dim=16, value_dim=16, dtype=torch.float32)
    for decay in (torch.zeros_like(beta), -torch.rand(beta.shape, generator=torch.Generator().manual_seed(3))):
        output, state = delta_rule(query, key, value, beta, decay=decay if decay.any() else None)
        tokens_first = (states.transpose(1, 2) for states in (query, key, value, decay, beta))
        theirs, their_state = torch_chunk_gated_delta_rule(*tokens_first, output_final_state=True)
        torch.testing.assert_close(output, theirs.transpose(1, 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(state, their_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", ["initial_state", "decay initial_state position_ids"])
def test_gradients_are_those_of_finite_differences(names):
    given = inputs(1, 2, 7, 3, 2)
    optional = extras(names, given[0], given[2])
    named = [name for name, states in optional.items() if states.is_floating_point()]
    rest = {name: states for name, states in optional.items() if name not in named}

    def function(query, key, value, beta, *more):
        return chunkwise_state(query, key, value, beta, **dict(zip(named, more, strict=True)), **rest, chunk_size=4)

    leaves = [states.requires_grad_() for states in (*given, *(optional[name] for name in named))]
    assert torch.autograd.gradcheck(function, leaves)


def test_gradients_at_strength_zero_are_right():
    given = inputs(length=20)
    given[3][:, :, ::3] = 0.0
    expected = results(delta_rule_reference, given, {})
    for found, wanted in zip(results(chunkwise_state, given, {}), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_output_alone_and_state_alone_have_gradients():
    given = [states.requires_grad_() for states in inputs(length=20)]
    for part in (0, 1):
        mine = torch.autograd.grad(chunkwise_state(*given)[part].sum(), given[1:])
        theirs = torch.autograd.grad(delta_rule_reference(*given)[part].sum(), given[1:])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [0.99, 1.0])
def test_the_same_key_again_and_again_stays_accurate(strength):
    query, key, value, beta = inputs(1, 1, 256, 16, 16)
    given = [query, key[:, :, :1].expand_as(key), value, torch.full_like(beta, strength)]
    expected = delta_rule_reference(*given)
    found = delta_rule(*(states.float() for states in given), chunk_size=64)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-4)


def test_inverse_stays_accurate_where_the_power_series_overflows():
    ones = torch.ones(3, 64, 64).tril(-1)
    for strength in (1.0, 1.9):
        exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + strength * ones.double())
        garbage_above = torch.full_like(ones, float("nan")).triu()
        found = unit_lower_inverse(strength * ones + garbage_above)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_documents_in_a_row_give_what_each_gives_alone():
    given = inputs(batch=1, length=100)
    lengths = [1, 16, 40, 1, 42]
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    packed, state = delta_rule(*given, position_ids=position_ids, chunk_size=16)
    alone = [
        delta_rule(*document) for document in zip(*(states.split(lengths, dim=2) for states in given), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat([output for output, _ in alone], dim=2), rtol=0, atol=1e-12)
    torch.testing.assert_close(state, alone[-1][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 3, 16, 36])
def test_two_pieces_with_the_state_carried_are_one_pass(cut):
    given = inputs()
    output, state = delta_rule(*given)
    first, carried = delta_rule(*(states[:, :, :cut] for states in given))
    second, last = delta_rule(*(states[:, :, cut:] for states in given), initial_state=carried)
    torch.testing.assert_close(torch.cat((first, second), dim=2), output, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-12)


def test_no_output_depends_on_later_tokens():
    given = inputs(dtype=torch.float32)
    changed = [states.clone() for states in given]
    for states in changed:
        states[:, :, 20] += 0.5
    before, after = delta_rule(*given)[0], delta_rule(*changed)[0]
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert not torch.equal(before[:, :, 20], after[:, :, 20])


def test_output_is_its_attention_matrix_times_the_values():
    query, key, value, beta = inputs()
    matrix = delta_rule_attention_matrix(query, key, beta)
    torch.testing.assert_close(matrix @ value, delta_rule(query, key, value, beta)[0], rtol=0, atol=1e-12)
    assert torch.equal(matrix, matrix.tril())


def test_strength_zero_leaves_the_state_and_reads_it():
    query, key, value, beta = inputs()
    state = extras("initial_state", query, value)["initial_state"]
    output, last = delta_rule(query, key, value, torch.zeros_like(beta), initial_state=state, scale=1.0)
    torch.testing.assert_close(last, state)
    torch.testing.assert_close(output, query @ state)


def test_orthogonal_keys_at_full_strength_are_stored_exactly_as_linear_attention_stores_them():
    key = torch.linalg.qr(torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    value = inputs(1, 2, 8)[2]
    output, state = delta_rule(key, key, value, torch.ones(1, 2, 8, dtype=torch.float64), scale=1.0)
    torch.testing.assert_close(key @ state, value)
    torch.testing.assert_close(output, linear_attention(key, key, value, scale=1.0)[0])


def test_a_key_written_again_holds_its_last_value():
    key = F.one_hot(torch.tensor([0, 1, 0, 2, 0, 1]), 4).double().expand(1, 1, -1, -1)
    value = inputs(1, 1, 6)[2]
    _, state = delta_rule(key, key, value, torch.ones(1, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(state[0, 0, :3], value[0, 0, [4, 5, 3]])
    assert not state[0, 0, 3].any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.floats(0, 2))
def test_a_step_shrinks_the_error_at_its_key_by_the_strength(seed, strength):
    query, key, value, beta = inputs(1, 1, 1, seed=seed)
    state = extras("initial_state", query, value)["initial_state"]
    _, after = delta_rule(query, key, value, torch.full_like(beta, strength), initial_state=state)
    before_error, after_error = (key @ states - value for states in (state, after))
    torch.testing.assert_close(after_error, (1 - strength) * before_error)


def test_transition_has_one_eigenvalue_that_is_not_one():
    query, key, _, _ = inputs(1, 1, 1, key_dim=6)
    key = 0.7 * key
    identity = torch.eye(6, dtype=torch.float64)[None, None]
    nothing = torch.zeros(1, 1, 1, 6, dtype=torch.float64)
    _, transition = delta_rule(
        query, key, nothing, torch.full((1, 1, 1), 1.5, dtype=torch.float64), initial_state=identity
    )
    spectrum = torch.linalg.eigvalsh(transition[0, 0])
    torch.testing.assert_close(spectrum, torch.tensor([1 - 1.5 * 0.49, 1, 1, 1, 1, 1], dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), strongest=st.sampled_from([1.0, 2.0]))
def test_nothing_written_never_lets_the_state_grow(seed, strongest):
    query, key, value, beta = inputs(1, 2, 40, seed=seed)
    state = extras("initial_state", query, value)["initial_state"]
    _, after = delta_rule(query, key, torch.zeros_like(value), strongest * beta, initial_state=state)
    assert (torch.linalg.matrix_norm(after, 2) <= torch.linalg.matrix_norm(state, 2) + 1e-12).all()


def test_half_precision_inputs_keep_their_dtype():
    given = inputs(length=20)
    found = delta_rule(*(states.half() for states in given))
    assert found[0].dtype == torch.float16
    assert relative_error(found[0], delta_rule_reference(*given)[0]) < 5e-3


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    given = inputs(length=40)
    keeping = [states.requires_grad_() for states in inputs(length=40)]
    with torch.no_grad():
        without = delta_rule(*keeping)
    assert not without[0].requires_grad
    torch.testing.assert_close(without, delta_rule(*given))


def test_memory_for_the_backward_pass_is_linear_in_the_length():
    kept = []
    for length in (256, 512, 1024):
        sizes = []
        given = [states.requires_grad_() for states in inputs(1, 2, length, 16, 16, dtype=torch.float32)]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda states, out=sizes: out.append(states.nbytes), lambda _: None
        ):
            delta_rule(*given)
        kept.append(sum(sizes))
    assert kept[1] - kept[0] == pytest.approx((kept[2] - kept[1]) / 2, rel=0.01)


def test_compiled_it_is_one_opaque_call():
    given = inputs(length=40, dtype=torch.float32)
    compiled = torch.compile(lambda *states: delta_rule(*states)[0] * 2, backend="aot_eager", fullgraph=True)
    leaves = [[states.clone().requires_grad_() for states in given] for _ in range(2)]
    found = torch.autograd.grad(compiled(*leaves[0]).sum(), leaves[0])
    expected = torch.autograd.grad((delta_rule_reference(*leaves[1])[0] * 2).sum(), leaves[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key": torch.zeros(2, 3, 36, 8)}, r"key is \(2, 3, 36, 8\) beside a query of \(2, 3, 37, 8\): give"),
        ({"value": torch.zeros(2, 1, 37, 5)}, r"value is .* give \(2, 3, 37, 5\)"),
        ({"beta": torch.zeros(2, 3, 37, 1)}, r"beta is .* give \(2, 3, 37\)"),
        ({"decay": torch.zeros(2, 3)}, r"decay is .* give \(2, 3, 37\)"),
        ({"position_ids": torch.zeros(1, 37)}, r"position_ids is .* give \(2, 37\)"),
        ({"initial_state": torch.zeros(2, 3, 5, 8)}, r"initial_state is .* give \(2, 3, 8, 5\)"),
        ({"query": torch.zeros(2, 37, 8)}, "query has 3 axes"),
        ({"chunk_size": 0}, "chunk_size 0: give at least 1"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(wrong, message):
    given = dict(zip(("query", "key", "value", "beta"), inputs(), strict=True))
    with pytest.raises(PerplabError, match=message):
        delta_rule(**(given | wrong))


def test_no_tokens_are_refused():
    with pytest.raises(PerplabError, match="no tokens"):
        delta_rule(*inputs(length=0))


def test_scale_multiplies_what_is_read_and_not_the_state():
    given = inputs()
    plain, state = delta_rule(*given)
    scaled, same_state = delta_rule(*given, scale=3.0)
    torch.testing.assert_close(scaled, plain * 3 * math.sqrt(8))
    torch.testing.assert_close(same_state, state)
