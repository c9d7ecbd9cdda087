import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.kernels import linear_attention, linear_attention_reference
from perplab.kernels.chunkwise_state import chunkwise_state

POSITIONS = torch.cat([torch.arange(length) for length in (1, 20, 16, 33)])


def inputs(batch=2, heads=3, length=70, key_dim=8, value_dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, length, size) for size in (key_dim, key_dim, value_dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def decay(kind, batch=2, heads=3, length=70):
    """RetNet's constants, or a draw for each token."""
    if kind == "constant":
        return torch.log1p(-(2.0 ** (-5 - torch.arange(heads, dtype=torch.float64))))[:, None].expand(batch, -1, length)
    if kind == "token":
        return -torch.rand(batch, heads, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return None


@pytest.mark.parametrize("kind", [None, "constant", "token"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 16, 70, None])
def test_chunks_give_the_recurrence_and_its_gradients(kind, packed, chunk_size):
    position_ids = torch.stack([POSITIONS, torch.arange(70)]) if packed else None
    leaves = [states.requires_grad_() for states in inputs()]
    if kind:
        leaves.append(decay(kind).clone().requires_grad_())
    leaves.append(torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(2)).double().requires_grad_())

    def results(function, **options):
        *first, state = leaves
        given = {"decay": first[3] if kind else None, "initial_state": state, "position_ids": position_ids}
        output, last = function(*first[:3], **given, **options)
        weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double() for x in (output, last)]
        total = (output * weights[0]).sum() + (last * weights[1]).sum()
        return [output, last, *torch.autograd.grad(total, leaves)]

    expected = results(linear_attention_reference)
    for found, wanted in zip(results(linear_attention, chunk_size=chunk_size), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_without_decay_it_is_attention_without_a_softmax():
    query, key, value = inputs()
    expected = (query @ key.mT).tril() @ value * 8**-0.5
    torch.testing.assert_close(linear_attention(query, key, value)[0], expected)


def test_with_a_constant_decay_it_is_retention():
    query, key, value = inputs()
    gamma = decay("constant").exp()[:, :, :1]
    distance = torch.arange(70)[:, None] - torch.arange(70)[None]
    weights = (query @ key.mT) * (gamma[..., None] ** distance).tril()
    torch.testing.assert_close(
        linear_attention(query, key, value, decay=decay("constant"))[0], weights @ value * 8**-0.5
    )


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 69))
def test_two_pieces_with_the_state_carried_are_one_pass(cut):
    given_all, decays = inputs(), decay("token")
    output, state = linear_attention(*given_all, decay=decays)
    first, carried = linear_attention(*(states[:, :, :cut] for states in given_all), decay=decays[:, :, :cut])
    second, last = linear_attention(
        *(states[:, :, cut:] for states in given_all), decay=decays[:, :, cut:], initial_state=carried
    )
    torch.testing.assert_close(torch.cat((first, second), dim=2), output, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_narrow_inputs_give_what_their_values_give_in_float64(dtype, error):
    given_all = inputs(length=200, key_dim=32, value_dim=32, dtype=dtype)
    decays = decay("token", length=200)
    output, state = linear_attention(*given_all, decay=decays.to(dtype))
    expected = linear_attention_reference(*(states.double() for states in given_all), decay=decays.to(dtype).double())
    for found, wanted in zip((output, state), expected, strict=True):
        assert (found.double() - wanted).norm() < error * wanted.norm()


def test_strong_decay_forgets_all_but_the_token_itself():
    query, key, value = inputs()
    output, _ = linear_attention(query, key, value, decay=torch.full((2, 3, 70), -60.0, dtype=torch.float64))
    torch.testing.assert_close(output, (query * key).sum(dim=-1, keepdim=True) * value * 8**-0.5)


def test_gradients_are_those_of_finite_differences():
    query, key, value = inputs(1, 2, 7, 3, 2)
    leaves = [states.requires_grad_() for states in (query, key, value, decay("token", 1, 2, 7))]
    assert torch.autograd.gradcheck(lambda q, k, v, d: chunkwise_state(q, k, v, None, decay=d, chunk_size=4), leaves)


def test_inputs_that_do_not_fit_are_refused():
    query, key, value = inputs()
    with pytest.raises(PerplabError, match=r"decay is \(3,\) .* give \(2, 3, 70\)"):
        linear_attention(query, key, value, decay=torch.zeros(3))
