import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perplab.kernels import linear_cross_entropy, linear_cross_entropy_reference, softmax_gradient

IGNORED = -100
MODULE = importlib.import_module("perplab.kernels.linear_cross_entropy")  # the room exports a function of its name


def inputs(tokens, hidden, vocabulary, dtype=torch.float64, ignored=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return states, weight, labels.masked_fill(torch.rand(tokens, generator=generator) < ignored, IGNORED)


def results(function, states, weight, labels, z_loss=0.0, upstream=1.0):
    """Loss, nll, and the gradients of `upstream` times the loss."""
    states, weight = (tensor.detach().clone().requires_grad_() for tensor in (states, weight))
    loss, nll = function(states, weight, labels, z_loss)
    assert not nll.requires_grad
    return loss.detach(), nll, *torch.autograd.grad(upstream * loss, (states, weight))


def assert_like_reference(*arguments, rtol=0.0, atol=1e-11, **options):
    ours = results(linear_cross_entropy, *arguments, **options)
    reference = results(linear_cross_entropy_reference, *arguments, **options)
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


@pytest.fixture
def small_chunks(monkeypatch):
    """At most four rows of 13 logits at a time."""
    monkeypatch.setattr(MODULE, "CHUNK_LOGITS", 4 * 13)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([1.0, -0.5, 3.0]),
    st.floats(0, 1),
)
def test_loss_costs_and_gradients_agree_with_the_reference(tokens, vocabulary, chunk, z_loss, upstream, ignored):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "CHUNK_LOGITS", chunk)
        assert_like_reference(*inputs(tokens, 5, vocabulary, ignored=ignored), z_loss=z_loss, upstream=upstream)


def test_chunks_give_what_one_chunk_gives(monkeypatch):
    arguments = inputs(29, 5, 13)
    whole = results(linear_cross_entropy, *arguments, z_loss=0.1)
    for limit in (1, 13, 40, 13 * 28):
        monkeypatch.setattr(MODULE, "CHUNK_LOGITS", limit)
        for one, many in zip(whole, results(linear_cross_entropy, *arguments, z_loss=0.1), strict=True):
            torch.testing.assert_close(many, one, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
def test_gradient_is_the_derivative():
    states, weight, labels = inputs(9, 3, 13)
    leaves = (states.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda *tensors: linear_cross_entropy(*tensors, labels, 0.1).loss, leaves)


def test_softmax_gradient_is_the_derivative_of_the_summed_loss():
    logits, _, labels = inputs(7, 11, 11)
    leaf = logits.requires_grad_()
    nll = torch.nn.functional.cross_entropy(leaf, labels, reduction="none", ignore_index=IGNORED)
    penalty = torch.logsumexp(leaf, dim=-1).square() * (labels != IGNORED)
    (expected,) = torch.autograd.grad((nll + 0.1 * penalty).sum(), leaf)
    costs, logsumexp, gradient = softmax_gradient(logits.detach(), labels, 0.1)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(costs, nll.detach())
    torch.testing.assert_close(logsumexp, torch.logsumexp(logits.detach(), dim=-1))


@pytest.mark.usefixtures("small_chunks")
def test_float32_agrees_with_the_reference_to_its_precision():
    assert_like_reference(*inputs(50, 32, 13, dtype=torch.float32), z_loss=0.1, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("small_chunks")
def test_nothing_scored_costs_nothing_and_moves_nothing():
    for result in results(linear_cross_entropy, *inputs(9, 3, 13, ignored=1.0), z_loss=0.1):
        assert not result.any()


def test_no_tokens_at_all_cost_nothing():
    loss, nll, grad_states, grad_weight = results(linear_cross_entropy, *inputs(0, 3, 13))
    assert (loss, len(nll), len(grad_states), grad_weight.any()) == (0, 0, 0, False)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    states, weight, labels = inputs(20, 5, 13, ignored=0)
    nll = linear_cross_entropy(torch.zeros_like(states), weight, labels).nll
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(13)))


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_huge_logits_neither_overflow_nor_vanish(shift):
    states, weight = torch.ones(3, 1), torch.tensor([[shift], [shift + 1.0], [shift + 2.0]])
    costs = linear_cross_entropy(states, weight, torch.tensor([0, 1, 2])).nll
    torch.testing.assert_close(costs, -torch.log_softmax(torch.tensor([0.0, 1.0, 2.0]), dim=0))


@pytest.mark.parametrize("frozen", ["weight", "hidden states", "both"])
def test_frozen_inputs_get_no_gradient_and_change_nothing_for_the_other(frozen):
    states, weight, labels = inputs(9, 3, 13)
    _, _, *expected = results(linear_cross_entropy, states, weight, labels)
    learnt = [frozen == "weight", frozen == "hidden states"]
    leaves = [tensor.requires_grad_(needed) for tensor, needed in zip((states, weight), learnt, strict=True)]
    loss = linear_cross_entropy(*leaves, labels).loss
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    for leaf, needed, gradient in zip(leaves, learnt, expected, strict=True):
        assert (leaf.grad is not None) == needed
        if needed:
            assert torch.equal(leaf.grad, gradient)


@pytest.mark.usefixtures("small_chunks")
def test_autocast_is_as_near_the_truth_as_a_plain_loss_under_autocast():
    arguments = inputs(64, 32, 13, dtype=torch.float32)
    truth = results(linear_cross_entropy_reference, *(t.double() if t.is_floating_point() else t for t in arguments))
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(linear_cross_entropy, *arguments)
        plain = results(linear_cross_entropy_reference, *arguments)
    for mine, theirs, true in zip(ours[2:], plain[2:], truth[2:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 1.5 * (theirs - true).norm()
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return output


@pytest.mark.parametrize("tokens", [64, 512])
def test_no_tensor_is_larger_than_a_chunk_or_an_input(monkeypatch, tokens):
    vocabulary, hidden, chunk = 500, 4, 16 * 500
    monkeypatch.setattr(MODULE, "CHUNK_LOGITS", chunk)
    arguments = inputs(tokens, hidden, vocabulary)
    with LargestTensor() as ours:
        results(linear_cross_entropy, *arguments, z_loss=0.1)
    with LargestTensor() as reference:
        results(linear_cross_entropy_reference, *arguments, z_loss=0.1)
    assert ours.elements == chunk
    assert reference.elements >= tokens * vocabulary
