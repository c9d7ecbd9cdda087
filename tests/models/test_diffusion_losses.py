"""Losses and bounds of masked diffusion, against distributions that can be summed over."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusion_tables import LENGTH, MASK, VOCABULARY, conditionals, disagreeing, every_sequence, random_joint

from perplab.errors import PerplabError
from perplab.models.diffusion import AbsorbingDiffusion, Cosine, Geometric, LogLinear, ao_bound, order_nll
from perplab.models.diffusion.losses import Noise, ao, dse, lambda_dce, noise, t_dce, token_costs, uniforms

LOSSES = {"ao": ao, "lambda-dce": lambda_dce, "t-dce": t_dce, "dse": dse}
SEQUENCE = torch.tensor([[2, 0, 1, 1]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def orders():
    return [torch.tensor(order) for order in itertools.permutations(range(LENGTH))]


def masks():
    return torch.tensor(list(itertools.product((False, True), repeat=LENGTH)))[1:]


def cost_of_masks(diffusion, sequence):
    """For each set of hidden tokens, how many there are and what they cost together."""
    hidden = masks()
    drawn = Noise(hidden, torch.ones(len(hidden), dtype=torch.float64))
    return hidden.sum(-1).double(), token_costs(diffusion, sequence.repeat(len(hidden), 1), "ao", drawn).sum(-1)


def any_order_cost(diffusion, sequence):
    """The bound as a sum over sets of hidden tokens."""
    sizes, costs = cost_of_masks(diffusion, sequence)
    weights = torch.tensor([1 / (size * math.comb(LENGTH, size)) for size in sizes.int().tolist()], dtype=torch.float64)
    return float((weights * costs).sum())


@pytest.fixture(scope="module")
def exact():
    return AbsorbingDiffusion(conditionals(random_joint()), MASK)


@pytest.fixture(scope="module")
def wrong():
    return AbsorbingDiffusion(disagreeing(), MASK)


def test_true_conditionals_cost_minus_log_p_in_every_order(exact):
    expected = -random_joint().flatten().log()
    for order in orders():
        torch.testing.assert_close(order_nll(exact, every_sequence(), order), expected, rtol=0, atol=1e-10)


def test_an_order_of_some_positions_costs_what_they_cost_given_the_others(exact):
    joint, order = random_joint(), torch.tensor([3, 1])
    conditional = joint / joint.sum(dim=(1, 3), keepdim=True)
    torch.testing.assert_close(
        order_nll(exact, every_sequence(), order), -conditional.flatten().log(), rtol=0, atol=1e-10
    )


def test_the_bound_is_the_mean_over_orders_and_above_the_mixture_of_orders(wrong):
    costs = torch.cat([order_nll(wrong, SEQUENCE, order) for order in orders()])
    assert any_order_cost(wrong, SEQUENCE) == pytest.approx(float(costs.mean()), abs=1e-12)
    mixture = math.log(len(costs)) - float(torch.logsumexp(-costs, 0))
    assert any_order_cost(wrong, SEQUENCE) > mixture + 0.01


def test_the_integral_over_mask_rates_is_the_sum_over_sets(wrong):
    sizes, costs = cost_of_masks(wrong, SEQUENCE)
    nodes, weights = np.polynomial.legendre.leggauss(LENGTH)
    integral = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        integral += weight * float((node ** (sizes - 1) * (1 - node) ** (LENGTH - sizes) * costs).sum())
    assert integral == pytest.approx(any_order_cost(wrong, SEQUENCE), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_bound_as_its_mean(wrong, name):
    ids = SEQUENCE.repeat(40_000, 1)
    drawn = LOSSES[name](wrong, ids, None, generator(), sampler="stratified")
    # Stratified draws cost less noise than independent ones, whose standard error is therefore an upper limit.
    error = float(drawn.std()) / math.sqrt(len(drawn))
    assert error < 0.03 * float(drawn.mean())
    assert float(drawn.mean()) == pytest.approx(any_order_cost(wrong, SEQUENCE), abs=4 * error)


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric(), Cosine()])
def test_the_integral_over_time_is_the_sum_over_sets_but_for_what_is_cut_off(wrong, schedule):
    timed = AbsorbingDiffusion(wrong.model, MASK, schedule)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    times, weights = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    hidden = masks()
    rates = 1 - schedule.alpha(times)
    chance = rates[:, None] ** hidden.sum(-1) * (1 - rates[:, None]) ** (LENGTH - hidden.sum(-1))
    ids = SEQUENCE.repeat(len(hidden), 1)
    integral = 0.0
    for time, weight, share in zip(times, weights, chance, strict=True):
        drawn = Noise(hidden, time.expand(len(hidden)))
        integral += float(weight * (share * token_costs(timed, ids, "t-dce", drawn).sum(-1)).sum())
    assert integral == pytest.approx(any_order_cost(wrong, SEQUENCE), rel=2e-3)


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric(), Cosine()])
def test_score_entropy_is_the_weighted_cross_entropy_of_every_token(wrong, schedule):
    timed = AbsorbingDiffusion(wrong.model, MASK, schedule)
    ids = torch.randint(VOCABULARY, (500, LENGTH), generator=generator())
    drawn = noise("dse", uniforms(500, "iid", generator(1)), torch.ones_like(ids).bool(), schedule, generator(2))
    entropy, cross_entropy = (token_costs(timed, ids, name, drawn) for name in ("dse", "t-dce"))
    assert entropy.dtype == torch.float64
    torch.testing.assert_close(entropy, cross_entropy, rtol=1e-10, atol=1e-10)


def test_equal_costs_give_the_any_order_loss_no_variance_and_the_others_some():
    uniform = AbsorbingDiffusion(lambda ids: torch.zeros(*ids.shape, VOCABULARY, dtype=torch.float64), MASK)
    ids, expected = SEQUENCE.repeat(20_000, 1), LENGTH * math.log(VOCABULARY)
    drawn = ao(uniform, ids, None, generator())
    torch.testing.assert_close(drawn, torch.full_like(drawn, expected), rtol=1e-12, atol=0)
    for name in ("lambda-dce", "t-dce", "dse"):
        others = LOSSES[name](uniform, ids, None, generator(), sampler="vdm")
        assert float(others.var()) > 0.5 * expected
        assert float(others.mean()) == pytest.approx(expected, rel=0.05)


def test_constants_and_the_mask_column_change_no_loss(wrong):
    def disguised(ids):
        logits = wrong.model(ids) + 7.0
        return torch.cat((logits, torch.full_like(logits[..., :1], 90.0)), dim=-1)

    other = AbsorbingDiffusion(disguised, MASK)
    for loss in LOSSES.values():
        ours, theirs = (
            loss(model, SEQUENCE.repeat(50, 1), None, generator(), sampler="iid") for model in (wrong, other)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_outputs_at_tokens_that_are_seen_get_no_gradient():
    logits = torch.randn(200, LENGTH, VOCABULARY, dtype=torch.float64, generator=generator(), requires_grad=True)
    diffusion = AbsorbingDiffusion(lambda ids: logits, MASK)
    ids = torch.randint(VOCABULARY, (200, LENGTH), generator=generator(1))
    drawn = noise("ao", uniforms(200, "iid", generator(2)), torch.ones_like(ids).bool(), LogLinear(), generator(3))
    token_costs(diffusion, ids, "ao", drawn).sum().backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert torch.equal(moved, drawn.hidden)


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_that_are_given_are_never_hidden_and_cost_nothing(name):
    scored = torch.tensor([[True, False, True, False, True]]).repeat(300, 1)
    drawn = noise(name, uniforms(300, "stratified", generator()), scored, LogLinear(), generator(1))
    assert not (drawn.hidden & ~scored).any()
    if name == "ao":
        assert torch.equal(drawn.amount, drawn.hidden.sum(-1).double() / 3)
        assert {1, 2, 3} == set(drawn.hidden.sum(-1).tolist())


@pytest.mark.parametrize("sampler", ["vdm", "stratified"])
def test_low_variance_draws_fall_one_into_each_part_and_each_row_anywhere(sampler):
    draws = torch.stack([uniforms(8, sampler, generator(seed)) for seed in range(2000)])
    assert all(torch.equal((row * 8).floor().sort().values, torch.arange(8.0).double()) for row in draws)
    assert torch.allclose(draws.mean(0), torch.tensor(0.5).double(), atol=0.03)
    assert float(draws[:, 3].min()) < 0.02
    assert float(draws[:, 3].max()) > 0.98


def test_the_estimated_bound_is_the_bound_within_its_standard_error(wrong):
    expected = any_order_cost(wrong, SEQUENCE) / LENGTH
    errors = []
    for seed in range(30):
        found = ao_bound(wrong, SEQUENCE, 64, generator(seed))
        errors.append((found.nats_per_token - expected) / found.standard_error)
        assert float(found.token_nats.sum()) / LENGTH == pytest.approx(found.nats_per_token)
        assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert abs(np.mean(errors)) < 0.6
    assert np.std(errors) < 1.3


def test_spreading_the_hidden_over_the_draws_is_surer(wrong):
    found = {
        stratified: np.std(
            [ao_bound(wrong, SEQUENCE, 16, generator(seed), stratified=stratified).nats_per_token for seed in range(60)]
        )
        for stratified in (False, True)
    }
    assert found[True] < found[False]


def test_batches_change_no_bound(wrong):
    ids = every_sequence()[:10]
    whole, pieces = (ao_bound(wrong, ids, 8, generator(), batch_tokens=tokens) for tokens in (10_000, 12))
    torch.testing.assert_close(whole.token_nats, pieces.token_nats)


def test_a_bound_needs_draws_and_tokens(wrong):
    with pytest.raises(PerplabError, match="give 2 or more"):
        ao_bound(wrong, SEQUENCE, 1, generator())
    with pytest.raises(PerplabError, match="no token"):
        ao_bound(wrong, SEQUENCE, 4, generator(), loss_mask=torch.zeros_like(SEQUENCE))


def test_text_with_the_mask_token_is_refused(wrong):
    with pytest.raises(PerplabError, match="holds token 3, which is the mask token"):
        ao(wrong, torch.tensor([[0, 1, MASK, 2]]).repeat(20, 1), None, generator())
    with pytest.raises(PerplabError, match="unknown sampler"):
        ao(wrong, SEQUENCE, None, generator(), sampler="sobol")


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric(), Cosine()])
def test_schedules_keep_their_identities(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.total(t).sum(), t)
    torch.testing.assert_close(derivative, schedule.rate(t), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.alpha(t), torch.exp(-schedule.total(t)), rtol=1e-9, atol=1e-12)
    early = t[t < 0.9]
    torch.testing.assert_close(schedule.lambda_to_t(1 - schedule.alpha(early)), early, rtol=0, atol=1e-6)
