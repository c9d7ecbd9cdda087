"""Generating with masked diffusion: laws, equal samples however it is batched, and the count of evaluations."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusion_tables import LENGTH, MASK, VOCABULARY, conditionals, disagreeing, random_joint
from scipy.stats import chi2, chi2_contingency

from perplab.errors import PerplabError
from perplab.models.diffusion import (
    AbsorbingDiffusion,
    Cosine,
    Geometric,
    LogLinear,
    SamplingConfig,
    expected_nfe,
    reveal_steps,
    sample,
)
from perplab.models.diffusion.sampling import draw_tokens

SAMPLES = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def masked(batch, length=LENGTH, mask=MASK):
    return torch.full((batch, length), mask)


def counts(ids):
    """How often each sequence came, flattened as a joint table is."""
    places = VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)
    return torch.bincount((ids * places).sum(-1), minlength=VOCABULARY**LENGTH).double()


def p_value(ids, law):
    """Of the chi-square test that `ids` are drawn from `law`."""
    expected = law.flatten() * len(ids)
    statistic = float(((counts(ids) - expected).square() / expected).sum())
    return float(chi2.sf(statistic, len(expected) - 1))


@pytest.fixture(scope="module")
def exact():
    return AbsorbingDiffusion(conditionals(random_joint()), MASK)


def draw(diffusion, batch=SAMPLES, seed=0, ids=None, **settings):
    return sample(diffusion, masked(batch) if ids is None else ids, SamplingConfig(**settings), generator(seed))


def test_one_step_draws_the_product_of_marginals(exact):
    joint = random_joint()
    marginals = [joint.sum(dim=[other for other in range(LENGTH) if other != place]) for place in range(LENGTH)]
    product = torch.einsum("a,b,c,d->abcd", *marginals)
    found = draw(exact, steps=1)
    assert p_value(found.ids, product) > 1e-3
    assert p_value(found.ids, joint) < 1e-6
    assert set(found.evaluations.tolist()) == {1}


@pytest.mark.parametrize("settings", [{"steps": 4000}, {"method": "ordered"}, {"method": "first-hitting"}])
def test_many_steps_or_one_token_a_step_draw_the_law_itself(exact, settings):
    assert p_value(draw(exact, **settings).ids, random_joint()) > 1e-3


def test_every_order_draws_the_law_of_true_conditionals(exact):
    for order in ("left-to-right", "right-to-left"):
        assert p_value(draw(exact, method="ordered", order=order).ids, random_joint()) > 1e-3


def test_first_hitting_and_random_order_have_one_law_also_for_wrong_conditionals():
    wrong = AbsorbingDiffusion(disagreeing(), MASK)
    hit, ordered = draw(wrong, method="first-hitting"), draw(wrong, seed=1, method="ordered")
    forward = draw(wrong, seed=2, method="ordered", order="left-to-right")
    seen = (counts(hit.ids) + counts(forward.ids)) > 20
    same = torch.stack((counts(hit.ids), counts(ordered.ids)))[:, seen]
    other = torch.stack((counts(hit.ids), counts(forward.ids)))[:, seen]
    assert chi2_contingency(same.numpy() + 0.5).pvalue > 1e-3
    assert chi2_contingency(other.numpy() + 0.5).pvalue < 1e-6


def test_tweedie_is_euler_bit_for_bit_under_a_log_linear_schedule(exact):
    tweedie, euler = (draw(exact, batch=500, steps=7, method=method) for method in ("tweedie", "euler"))
    assert torch.equal(tweedie.ids, euler.ids)
    assert torch.equal(tweedie.evaluations, euler.evaluations)
    steps = [
        reveal_steps(torch.ones(500, 4, dtype=torch.bool), 7, Geometric(), method, generator())
        for method in ("tweedie", "euler")
    ]
    assert not torch.equal(*steps)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_what_is_read_anew_changes_no_sample(exact, steps):
    found = {cache: draw(exact, batch=64, steps=steps, cache=cache) for cache in ("sequence", "batch", "none")}
    assert torch.equal(found["sequence"].ids, found["none"].ids)
    assert torch.equal(found["batch"].ids, found["none"].ids)
    assert set(found["none"].evaluations.tolist()) == {steps}
    assert (found["sequence"].evaluations <= min(steps, LENGTH)).all()
    assert (found["sequence"].evaluations <= found["batch"].evaluations).all()
    assert (found["batch"].evaluations <= steps).all()


def test_what_is_given_anywhere_stays_and_the_rest_is_drawn_given_it(exact):
    given = torch.tensor([[MASK, 2, MASK, 0]]).repeat(SAMPLES, 1)
    found = draw(exact, ids=given, method="ordered")
    assert (found.ids[:, 1] == 2).all()
    assert (found.ids[:, 3] == 0).all()
    assert not (found.ids == MASK).any()
    law = random_joint()[:, 2, :, 0]
    expected = (law / law.sum() * SAMPLES).flatten()
    came = torch.bincount(found.ids[:, 0] * VOCABULARY + found.ids[:, 2], minlength=VOCABULARY**2)
    assert float(chi2.sf(float(((came - expected).square() / expected).sum()), len(expected) - 1)) > 1e-3
    assert set(found.evaluations.tolist()) == {2}


def test_nothing_hidden_asks_the_network_nothing(exact):
    ids = torch.tensor([[0, 1, 2, 0]])
    found = draw(exact, ids=ids)
    assert torch.equal(found.ids, ids)
    assert found.evaluations.tolist() == [0]


def test_an_order_by_position_reveals_in_that_order():
    hidden = torch.tensor([[True, True, False, True]])
    steps = reveal_steps(hidden, 1, LogLinear(), "ordered", generator(), torch.tensor([3, 2, 0, 1]))
    assert steps.tolist() == [[1, 2, -1, 0]]
    with pytest.raises(PerplabError, match="no permutation"):
        reveal_steps(hidden, 1, LogLinear(), "ordered", generator(), torch.tensor([3, 3, 0, 1]))


def evaluations(steps, length, schedule, method, batch):
    """Steps that reveal something, of simulated sequences."""
    revealed = reveal_steps(torch.ones(batch, length, dtype=torch.bool), steps, schedule, method, generator())
    return np.array([len(set(row.tolist())) for row in revealed])


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric(), Cosine()])
@pytest.mark.parametrize("method", ["tweedie", "euler"])
def test_expected_evaluations_are_those_of_simulation(schedule, method):
    for steps, length in ((64, 16), (12, 40)):
        found = evaluations(steps, length, schedule, method, 3000)
        expected = expected_nfe(steps, length, schedule, method)
        assert found.mean() == pytest.approx(expected, abs=4 * found.std() / math.sqrt(len(found)) + 1e-9)


@pytest.mark.parametrize(("steps", "length", "expected"), [(1024, 1024, 647.5), (4096, 1024, 906.1), (64, 16, 14.3)])
def test_expected_evaluations_have_their_closed_form(steps, length, expected):
    found = expected_nfe(steps, length, LogLinear(), "tweedie")
    assert found == pytest.approx(steps * (1 - (1 - 1 / steps) ** length), rel=1e-3)
    assert found == pytest.approx(expected, abs=0.5)


def test_expected_evaluations_grow_with_steps_and_length_to_their_limits():
    def nfe(steps, length):
        return expected_nfe(steps, length, LogLinear(), "tweedie")

    assert nfe(1, 30) == pytest.approx(1)
    assert nfe(1_000_000, 30) == pytest.approx(30, rel=1e-3)
    assert expected_nfe(5, 30, LogLinear(), "ordered") == 30
    for values in ([nfe(n, 30) for n in (1, 2, 5, 20, 100)], [nfe(20, length) for length in (1, 2, 5, 20, 100)]):
        assert all(before < after for before, after in itertools.pairwise(values))


def test_draws_invert_the_distribution_function():
    logits = torch.randn(1, 6, dtype=torch.float64, generator=generator())
    chance = torch.rand(50_000, dtype=torch.float64, generator=generator(1))
    drawn = draw_tokens(logits.expand(len(chance), -1), chance, SamplingConfig())
    found = torch.bincount(drawn, minlength=6) / len(chance)
    torch.testing.assert_close(found.double(), torch.softmax(logits[0], -1), rtol=0, atol=0.01)
    assert draw_tokens(logits, torch.tensor([0.0], dtype=torch.float64), SamplingConfig()).item() == 0
    assert draw_tokens(logits, torch.tensor([1 - 1e-16], dtype=torch.float64), SamplingConfig()).item() == 5


def test_temperature_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    chance = torch.linspace(1e-3, 1 - 1e-9, 400, dtype=torch.float64)

    def kept(**settings):
        return set(draw_tokens(logits.expand(400, -1), chance, SamplingConfig(**settings)).tolist())

    assert kept() == {0, 1, 2, 3}
    assert kept(temperature=0) == {1}
    assert kept(top_k=2) == {1, 2}
    assert kept(top_p=0.39) == {1}
    assert kept(top_p=0.71) == {1, 2, 3}
    assert kept(temperature=0.01) == {1}


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"temperature": -1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"method": "gibbs"},
        {"order": "up"},
        {"cache": "all"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(bad):
    with pytest.raises(PerplabError, match=next(iter(bad))):
        SamplingConfig(**bad)
