"""The planner against a plain search, its limits, and what it refuses."""

from itertools import pairwise

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.laws import ChinchillaLaw, LawWarning, OverTrainingLaw, plan

LAW = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136)
UNEQUAL = ChinchillaLaw(irreducible=1.69, params_scale=406.4, alpha=0.34, tokens_scale=410.7, beta=0.28)


def totals_on_the_target(law, target, inference_tokens):
    """Training and use of models of many sizes, each trained until it reaches the target by bisection on tokens."""
    params = np.geomspace(1e7, 1e13, 40_001)
    low, high = np.full_like(params, 1e3), np.full_like(params, 1e30)
    for _ in range(200):
        middle = np.sqrt(low * high)
        reached = law.predict(params=params, tokens=middle) <= target
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    reachable = law.predict(params=params, tokens=high) <= target
    return np.where(reachable, 6 * params * high + 2 * params * inference_tokens, np.inf)


@pytest.mark.parametrize("law", [LAW, UNEQUAL])
@pytest.mark.parametrize("inference_tokens", [0.0, 1e11, 1e13, 1e16])
def test_no_size_reaches_the_target_for_less(law, inference_tokens):
    chosen = plan(law, 2.4, inference_tokens).plan
    assert law.predict(params=chosen.params, tokens=chosen.tokens) == pytest.approx(2.4, rel=1e-12)
    assert chosen.total == pytest.approx(totals_on_the_target(law, 2.4, inference_tokens).min(), rel=1e-5)


def test_without_use_the_plan_is_the_optimal_multiplier():
    advice = plan(LAW, 2.4)
    assert advice.plan.multiplier == pytest.approx(LAW.optimal_multiplier(), rel=1e-4)
    assert advice.savings == pytest.approx(0, abs=1e-12)


def test_more_use_means_a_smaller_model_trained_longer():
    plans = [plan(LAW, 2.4, tokens).plan for tokens in (0, 1e11, 1e12, 1e13, 1e14)]
    assert all(after.params < before.params for before, after in pairwise(plans))
    assert all(after.multiplier > before.multiplier for before, after in pairwise(plans))


def test_savings_compare_the_totals_of_both_models():
    advice = plan(LAW, 2.4, 1e13)
    optimal = advice.training_optimal
    assert optimal.multiplier == pytest.approx(LAW.optimal_multiplier(), rel=1e-4)
    assert optimal.inference == pytest.approx(2 * optimal.params * 1e13)
    assert 1 - advice.savings == pytest.approx(advice.plan.total / optimal.total)
    assert 0 < advice.savings < 1


def test_a_target_out_of_reach_and_negative_use_are_refused():
    with pytest.raises(PerplabError, match=r"loss 1\.8 is not above the irreducible loss"):
        plan(LAW, 1.8)
    with pytest.raises(PerplabError, match="inference_tokens is -1"):
        plan(LAW, 2.4, -1)
    with pytest.raises(PerplabError, match="does not fall"):
        plan(OverTrainingLaw(irreducible=1.8, a=0.0, b=367.0, eta=0.136), 2.4)


def test_a_plan_outside_the_fitted_multipliers_is_a_warning():
    law = OverTrainingLaw(irreducible=1.8, a=212.0, b=367.0, eta=0.136, multipliers=(20.0, 320.0))
    with pytest.warns(LawWarning, match="outside the fitted 20 to 320"):
        plan(law, 2.4)
