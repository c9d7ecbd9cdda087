"""How large a model to train, and on how many tokens, when it has to reach a loss and will then be used.

Training costs 6 N D operations and each token of use 2 N. Of all models that reach the target, a smaller one that is
trained longer costs more to train and less to use; the plan is the cheapest in all. Let s be the part of the loss to
remove that is left to the term in N, and 1 - s to the term in D. Both costs are then log-convex in log(s / (1 - s)), so
their sum has one minimum and a search in one dimension finds it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from perplab.errors import PerplabError
from perplab.laws.allocation import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation
from perplab.laws.chinchilla import ChinchillaLaw
from perplab.laws.scaling import OverTrainingLaw

FLOPS_PER_PARAMETER_AND_TOKEN_OF_USE = 2
_LOGITS = -60.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model to train.

    Attributes:
        params: its parameters, embeddings included.
        tokens: its training tokens.
        training: floating-point operations of its training.
        inference: floating-point operations of its use.
    """

    params: float
    tokens: float
    training: float
    inference: float

    @property
    def multiplier(self) -> float:
        """Training tokens per parameter."""
        return self.tokens / self.params

    @property
    def total(self) -> float:
        """Floating-point operations in all."""
        return self.training + self.inference


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The cheapest model in all, and beside it the one that is cheapest to train.

    Attributes:
        plan: the least operations for training and use together.
        training_optimal: the least operations for training, at M* tokens per parameter, then used as much.
    """

    plan: Plan
    training_optimal: Plan

    @property
    def savings(self) -> float:
        """Share of the training-optimal model's total that the plan saves."""
        return 1 - self.plan.total / self.training_optimal.total


def plan(law: OverTrainingLaw | ChinchillaLaw, target_loss: float, inference_tokens: float = 0.0) -> Advice:
    """Choose parameters and tokens that reach a loss with the least operations for training and use together.

    Args:
        law: of the loss.
        target_loss: nats per token to reach.
        inference_tokens: tokens that the model will read or write in use.

    Raises:
        PerplabError: the target is not above the irreducible loss, the inference tokens are negative, or the law has no
            optimum because one of its terms is zero.
    """
    if not inference_tokens >= 0:
        raise PerplabError(f"inference_tokens is {inference_tokens:g}", "give 0 or more")
    terms = law if isinstance(law, ChinchillaLaw) else ChinchillaLaw.of_over_training(law)
    if not (terms.params_scale > 0 and terms.tokens_scale > 0 and terms.alpha > 0 and terms.beta > 0):
        raise PerplabError("the law has a term that does not fall with size or tokens", "fit other runs")
    to_remove = float(law.excess(target_loss))
    advice = Advice(
        plan=_cheapest(terms, to_remove, inference_tokens, searched_for=inference_tokens),
        training_optimal=_cheapest(terms, to_remove, inference_tokens, searched_for=0.0),
    )
    for chosen in (advice.plan, advice.training_optimal):
        law.warn_outside(chosen.multiplier)
    return advice


def _cheapest(law: ChinchillaLaw, to_remove: float, inference_tokens: float, searched_for: float) -> Plan:
    """The plan of least total where `searched_for` tokens are used, told with `inference_tokens`."""

    def spent(logit: float) -> Allocation:
        log_share, log_rest = special.log_expit(logit), special.log_expit(-logit)
        params = np.exp((np.log(law.params_scale / to_remove) - log_share) / law.alpha)
        tokens = np.exp((np.log(law.tokens_scale / to_remove) - log_rest) / law.beta)
        return Allocation(params, tokens)

    def log_total(logit: float) -> float:
        chosen = spent(logit)
        per_parameter = (
            FLOPS_PER_PARAMETER_AND_TOKEN * chosen.tokens + FLOPS_PER_PARAMETER_AND_TOKEN_OF_USE * searched_for
        )
        return float(np.log(chosen.params) + np.log(per_parameter))

    found = optimize.minimize_scalar(log_total, bounds=_LOGITS, method="bounded", options={"xatol": 1e-10})
    best = spent(found.x)
    return Plan(
        params=float(best.params),
        tokens=float(best.tokens),
        training=float(best.compute),
        inference=FLOPS_PER_PARAMETER_AND_TOKEN_OF_USE * float(best.params) * inference_tokens,
    )
