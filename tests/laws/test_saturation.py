from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from perplab.errors import PerplabError
from perplab.laws.saturation import (
    Adversary,
    Algorithm,
    ForkConfig,
    SaturationConfig,
    bilinear_excess,
    bilinear_trace,
    descend,
    exact_descent,
    excess_loss,
    forked,
    label_noise_descent,
    rank_one_flow,
    saturate,
)
from perplab.models.decoder_config import DecoderConfig
from perplab.text.synthetic.languages import HMM, LogBilinear
from perplab.training.new_model import new_decoder

LANGUAGE = HMM.random(states=2, symbols=4, length=5, seed=0)
BIGRAMS = LogBilinear.random(contexts=8, words=6, factors=6, seed=0)
RANK_ONE = LogBilinear.random(contexts=4, words=5, factors=1, seed=0)


def small_decoder(vocab_size=4, seed=0):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return new_decoder(DecoderConfig(vocab_size=vocab_size, initializer_range=0.25, **sizes), seed)


class LookupTable(torch.nn.Module):
    """A causal model whose logits are the exact log-probabilities, plus what is `added` to one symbol's."""

    def __init__(self, language, added=0.0):
        super().__init__()
        self.language, self.added = language, added
        self.device = torch.device("cpu")
        self.config = DecoderConfig(vocab_size=language.vocab_size)

    def forward(self, input_ids, **_):
        whole = torch.nn.functional.pad(input_ids, (0, 1))  # what follows the last symbol does not depend on it
        logits = torch.from_numpy(self.language.next_token(whole.numpy())[:, 1:])
        logits[..., 0] += self.added
        return type("Output", (), {"logits": logits})


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def run(model, algorithm, steps, seed=0):
    deque(descend(model, LANGUAGE, algorithm, steps, seed=seed), maxlen=0)
    return model


def test_a_lookup_table_has_no_excess():
    excess = excess_loss(LookupTable(LANGUAGE), LANGUAGE, sentences=64)
    assert excess.value == pytest.approx(0.0, abs=1e-6)
    assert excess_loss(LookupTable(LANGUAGE, added=0.5), LANGUAGE, sentences=64).value > 0.01


def test_excess_is_the_loss_less_the_entropy():
    model, ids = small_decoder().eval(), LANGUAGE.sample(4000, 1)
    logits = model(torch.from_numpy(ids[:, :-1])).logits.detach()
    costs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(ids[:, 1:]).flatten())
    exact = -np.take_along_axis(LANGUAGE.next_token(ids), ids[..., None], axis=-1)[:, 1:].mean()
    excess = excess_loss(model, LANGUAGE, sentences=4000, seed=1)
    assert excess.value == pytest.approx(float(costs) - exact, abs=0.02)
    assert excess.interval.low < excess.value < excess.interval.high


def test_training_stops_at_the_bound_and_never_below_the_entropy():
    config = SaturationConfig(bound=0.03, max_steps=600, check_every=50, algorithm=Algorithm(learning_rate=1e-2))
    model = small_decoder()
    saturation = saturate(model, LANGUAGE, config)
    assert saturation.reached
    assert 0 < saturation.excess.value < 0.03
    assert saturation.steps == saturation.course[-1][0] < 600
    assert all(excess > 0.03 for _, excess in saturation.course[:-1])
    assert not model.training


def test_a_run_that_is_too_short_says_that_the_bound_was_not_reached():
    saturation = saturate(small_decoder(), LANGUAGE, SaturationConfig(bound=1e-6, max_steps=3, check_every=2))
    assert not saturation.reached
    assert [steps for steps, _ in saturation.course] == [2, 3]


def test_exact_labels_are_the_mean_of_sampled_ones():
    """At a learning rate near 0, many sampled steps go where exact ones go."""
    start = weights(small_decoder())
    rate = 1e-4
    exact, sampled = (
        weights(run(small_decoder(), Algorithm(optimizer="sgd", learning_rate=rate, batch_size=256, labels=labels), 40))
        - start
        for labels in ("exact", "sampled")
    )
    assert torch.nn.functional.cosine_similarity(exact, sampled, dim=0) > 0.99
    assert float(sampled.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


def test_a_step_is_the_learning_rate_times_the_gradient_of_the_mean_cost():
    algorithm = Algorithm(optimizer="sgd", learning_rate=0.5, batch_size=8)
    model = small_decoder().train()
    ids = torch.from_numpy(LANGUAGE.draw(512, np.random.default_rng([3, 1]))[:8])
    logits = model(ids[:, :-1], use_cache=False).logits
    cost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(cost, list(model.parameters()))])
    moved = weights(run(small_decoder(), algorithm, 1, seed=3)) - weights(small_decoder())
    assert torch.allclose(moved, -0.5 * gradient, atol=1e-6)


def test_a_seed_gives_the_same_weights():
    algorithm = Algorithm(adversary=Adversary(sentences=64, refit_every=2, batch_size=8))
    one, same, other = (weights(run(small_decoder(), algorithm, 4, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_decaying_rates_fall_to_nothing_after_a_warm_up():
    rates = [Algorithm(learning_rate=1.0, decay=True, warmup=3).rate(step, 100) for step in range(100)]
    assert rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[-1] == pytest.approx(0.01)
    assert {Algorithm(learning_rate=0.5).rate(step, 100) for step in range(100)} == {0.5}


def test_an_adversary_raises_the_downstream_loss():
    from perplab.laws.probes import hidden_features, linear_probe

    start = saturate_quickly()
    ids = LANGUAGE.sample(2000, 5)
    labels = LANGUAGE.hidden_labels(ids)[:, 0]
    adversary = Adversary(weight=0.5, sentences=512, refit_every=5)
    ends = forked(
        start,
        LANGUAGE,
        {"plain": Algorithm(learning_rate=3e-3), "adversarial": Algorithm(learning_rate=3e-3, adversary=adversary)},
        ForkConfig(steps=80, settling_steps=0),
    )
    losses = {name: linear_probe(hidden_features(model, ids), labels).loss for name, model in ends.items()}
    assert losses["adversarial"] > losses["plain"]


def saturate_quickly():
    model = small_decoder()
    run(model, Algorithm(learning_rate=1e-2, labels="exact", decay=True), 150)
    return model


def test_forks_leave_the_start_alone_and_settle_after_their_own_steps():
    start = saturate_quickly()
    before = weights(start)
    algorithm = Algorithm(optimizer="sgd", learning_rate=0.1, batch_size=4)
    settling = Algorithm(labels="exact", decay=True)
    config = ForkConfig(steps=5, settling=settling, settling_steps=3, seed=2)
    ends = forked(start, LANGUAGE, {"one": algorithm, "same": algorithm}, config)
    assert torch.equal(weights(start), before)
    assert torch.equal(weights(ends["one"]), weights(ends["same"]))
    unsettled = forked(start, LANGUAGE, {"one": algorithm}, replace(config, settling_steps=0))["one"]
    settled = forked(unsettled, LANGUAGE, {"one": algorithm}, replace(config, steps=0))["one"]
    assert torch.equal(weights(settled), weights(ends["one"]))


def test_settling_brings_noisy_forks_back_to_the_floor():
    start = saturate_quickly()
    noisy = {"noisy": Algorithm(optimizer="sgd", learning_rate=0.3, batch_size=1)}
    away = forked(start, LANGUAGE, noisy, ForkConfig(steps=60, settling_steps=0))["noisy"]
    back = forked(start, LANGUAGE, noisy, ForkConfig(steps=60, settling_steps=150))["noisy"]
    assert excess_loss(back, LANGUAGE).value < excess_loss(away, LANGUAGE).value / 2


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: excess_loss(small_decoder(vocab_size=3), LANGUAGE), "3 tokens for a language of 4"),
        (lambda: run(small_decoder(vocab_size=3), Algorithm(), 1), "3 tokens for a language of 4"),
        (lambda: excess_loss(small_decoder(), LANGUAGE, sentences=1), "two or more"),
        (lambda: SaturationConfig(bound=0.0), "positive bound"),
        (lambda: SaturationConfig(max_steps=0), "1 or more"),
        (lambda: ForkConfig(steps=-1), "0 or more"),
        (lambda: Algorithm(learning_rate=0.0), "positive"),
        (lambda: run(small_decoder(), Algorithm(adversary=Adversary(task=7)), 1), "hidden label 7 of 5"),
        (lambda: run(small_decoder(), Algorithm(optimizer="sgd", learning_rate=1e30), 5), "lower learning rate"),
        (lambda: rank_one_flow(BIGRAMS, 2.0, time=1.0), "one factor"),
        (lambda: rank_one_flow(RANK_ONE, 0.0, time=1.0), "scale 0"),
    ],
)
def test_runs_that_cannot_be_are_refused(make, problem):
    with pytest.raises(PerplabError, match=problem):
        make()


def numeric_trace(language, vectors):
    """Trace of the Hessian of the exact loss by automatic differentiation."""
    contexts, words = (torch.from_numpy(part) for part in vectors)
    exact = torch.from_numpy(np.exp(language.log_conditional))
    shares = torch.from_numpy(language.probabilities)

    def loss(flat):
        logits = flat[: contexts.numel()].view_as(contexts) @ flat[contexts.numel() :].view_as(words).T
        return -(shares @ (exact * torch.log_softmax(logits, dim=1)).sum(dim=1))

    return float(torch.func.hessian(loss)(torch.cat((contexts.flatten(), words.flatten()))).diagonal().sum())


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_closed_form_of_the_bilinear_trace_is_the_hessians(scale):
    vectors = BIGRAMS.minimiser(scale)
    assert float(bilinear_trace(BIGRAMS, vectors)) == pytest.approx(numeric_trace(BIGRAMS, vectors), abs=1e-10)


def test_gradients_without_noise_do_not_move_a_minimiser():
    start = BIGRAMS.minimiser(3.0)
    end = exact_descent(BIGRAMS, start, learning_rate=0.02, steps=2000)
    assert max(abs(one - other).max() for one, other in zip(start, end, strict=True)) < 1e-12


def test_label_noise_slides_to_flatter_models_and_less_so_in_large_batches():
    start = BIGRAMS.minimiser(3.0)
    options = {"learning_rate": 0.04, "steps": 4000, "seed": 0, "runs": 4}
    small = label_noise_descent(BIGRAMS, start, batch_size=1, **options)
    large = label_noise_descent(BIGRAMS, start, batch_size=4, **options)
    assert bilinear_trace(BIGRAMS, small).mean() < bilinear_trace(BIGRAMS, large).mean()
    assert bilinear_trace(BIGRAMS, large).max() < bilinear_trace(BIGRAMS, start)


def test_excess_under_label_noise_is_of_the_order_of_the_learning_rate():
    start = BIGRAMS.minimiser()
    found = [
        bilinear_excess(
            BIGRAMS,
            label_noise_descent(BIGRAMS, start, learning_rate=rate, batch_size=1, steps=1500, seed=0, runs=30),
        ).mean()
        for rate in (0.02, 0.01, 0.005)
    ]
    assert found[0] / found[1] == pytest.approx(2.0, abs=0.6)
    assert found[1] / found[2] == pytest.approx(2.0, abs=0.6)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_stochastic_descent_follows_the_flow_of_the_theorem(batch_size):
    rate, time = 0.05, 4.0
    contexts, _ = label_noise_descent(
        RANK_ONE,
        RANK_ONE.minimiser(2.0),
        learning_rate=rate,
        batch_size=batch_size,
        steps=round(time / rate**2),
        seed=0,
        runs=400,
    )
    own, _ = RANK_ONE.minimiser()
    scale = (contexts * own).sum(axis=(1, 2)) / (own**2).sum()
    flow = rank_one_flow(RANK_ONE, 2.0, time=time, batch_size=batch_size)
    assert flow < 1.9
    assert scale.mean() == pytest.approx(flow, rel=0.02)


def test_the_flow_ends_at_the_flattest_minimiser():
    end = rank_one_flow(RANK_ONE, 2.0, time=1000.0)
    traces = [float(bilinear_trace(RANK_ONE, RANK_ONE.minimiser(end * factor))) for factor in (0.99, 1.0, 1.01)]
    assert traces[1] < min(traces[0], traces[2])
    at_one, at_two = (float(bilinear_trace(RANK_ONE, RANK_ONE.minimiser(scale))) for scale in (1.0, 2.0))
    beta = (4 * at_two - at_one) / 15  # the trace is alpha / s^2 + beta s^2
    alpha = at_one - beta
    assert end == pytest.approx((alpha / beta) ** 0.25, rel=1e-6)
    assert traces[1] == pytest.approx(2 * (alpha * beta) ** 0.5, rel=1e-9)
