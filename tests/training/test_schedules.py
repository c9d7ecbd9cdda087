import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from perplab.errors import PerplabError
from perplab.training import Schedule, TrainConfig, schedule_of

INFINITE = Schedule(
    name="infinite", total_steps=100, warmup_steps=10, cooldown_steps=30, decay_steps=20, plateau=0.4, final=0.01
)
phases = st.tuples(*(st.integers(0, 30) for _ in range(4)))


def course(schedule, steps=None):
    return [schedule(step) for step in range(steps or schedule.total_steps)]


def stock_course(make, steps, **arguments):
    """What a scheduler of transformers multiplies a learning rate of 1 by, before each of its steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_that_of_transformers_with_warmup_one_step_earlier():
    ours = Schedule(name="cosine", total_steps=100, warmup_steps=10, final=0.1)
    stock = stock_course(
        get_cosine_with_min_lr_schedule_with_warmup, 101, num_warmup_steps=10, num_training_steps=100, min_lr_rate=0.1
    )
    assert course(ours)[:10] == pytest.approx(stock[1:11])
    assert course(ours, 101)[10:] == pytest.approx(stock[10:])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_is_that_of_transformers_with_warmup_one_step_earlier(final):
    ours = Schedule(name="wsd", total_steps=100, warmup_steps=10, decay_steps=30, final=final)
    stock = stock_course(
        get_wsd_schedule,
        101,
        num_warmup_steps=10,
        num_decay_steps=30,
        num_training_steps=100,
        decay_type="linear",
        min_lr_ratio=final,
    )
    assert course(ours, 101)[10:] == pytest.approx(stock[10:])
    # Theirs warms up from the floor of the decay.
    assert [final + (1 - final) * share for share in course(ours)[:10]] == pytest.approx(stock[1:11])


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd", "infinite"])
def test_warmup_is_linear_and_wastes_no_step(name):
    schedule = Schedule(name=name, total_steps=50, warmup_steps=8, cooldown_steps=5, decay_steps=5, final=0.1)
    assert course(schedule, 8) == pytest.approx([(step + 1) / 8 for step in range(8)])


def test_rewarming_starts_from_the_share_it_is_given():
    schedule = Schedule(name="constant", total_steps=50, warmup_steps=4, start=0.2)
    assert course(schedule, 6) == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    unchanged = Schedule(name="constant", total_steps=50, warmup_steps=4, start=1.0)
    assert course(unchanged) == [1.0] * 50


def test_without_warmup_the_first_step_is_at_the_peak():
    for name in ("constant", "cosine", "wsd", "infinite"):
        assert Schedule(name=name, total_steps=10, decay_steps=2, final=0.1)(0) == 1.0


@given(st.integers(0, 20), st.integers(1, 80), st.floats(0, 1))
def test_cosine_falls_from_peak_to_floor_and_is_half_way_in_the_middle(warmup, half, final):
    schedule = Schedule(name="cosine", total_steps=warmup + 2 * half, warmup_steps=warmup, final=final)
    shares = course(schedule, schedule.total_steps + 5)
    after = shares[warmup:]
    assert after == sorted(after, reverse=True)
    assert shares[warmup] == 1.0
    assert shares[warmup + half] == pytest.approx((1 + final) / 2)
    assert shares[-6] >= final
    assert shares[-5:] == pytest.approx([final] * 5)


@given(phases, st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["constant", "cosine", "wsd", "infinite"]))
def test_every_share_lies_between_zero_and_the_peak(lengths, plateau, final, name):
    warmup, cooldown, decay, rest = lengths
    total = warmup + cooldown + decay + rest + 1
    schedule = Schedule(
        name=name,
        total_steps=total,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        decay_steps=decay,
        plateau=plateau,
        final=final,
    )
    assert all(0 < share <= 1 + 1e-12 for share in course(schedule, total + 10))


def test_infinite_schedule_meets_its_closed_forms_and_joints():
    assert INFINITE(10) == 1.0
    assert INFINITE(25) == pytest.approx(0.7, abs=1e-12)  # half-way between peak and plateau
    assert course(INFINITE)[40:81] == pytest.approx([0.4] * 41, abs=1e-12)
    assert INFINITE(100) == pytest.approx(0.01, abs=1e-12)
    logarithms = [math.log(share) for share in course(INFINITE, 101)[80:]]
    steps = [after - before for before, after in itertools.pairwise(logarithms)]
    assert steps == pytest.approx([math.log(0.01 / 0.4) / 20] * 20, abs=1e-12)


def test_constant_phase_of_the_infinite_schedule_knows_no_horizon():
    longer = Schedule(**(vars(INFINITE) | {"total_steps": 1000}))
    assert course(longer)[:80] == course(INFINITE)[:80]
    assert longer(900) == pytest.approx(0.4)


def test_infinite_schedule_without_cooldown_stays_at_its_plateau_until_the_decay():
    schedule = Schedule(name="infinite", total_steps=50, warmup_steps=5, decay_steps=10, plateau=1.0, final=0.1)
    assert course(schedule)[5:41] == pytest.approx([1.0] * 36)
    assert schedule(45) == pytest.approx(math.sqrt(0.1))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "cosine", "warmup_steps": 11},
        {"name": "constant", "warmup_steps": 11},
        {"name": "wsd", "warmup_steps": 6, "decay_steps": 5},
        {"name": "infinite", "warmup_steps": 4, "cooldown_steps": 4, "decay_steps": 4, "final": 0.1},
    ],
)
def test_phases_that_do_not_fit_are_refused(options):
    with pytest.raises(PerplabError, match=f"phases of the {options['name']} schedule take 1[12] of 10 steps"):
        Schedule(total_steps=10, **options)


def test_exponential_decay_to_zero_is_refused():
    with pytest.raises(PerplabError, match="cannot end at 0"):
        Schedule(name="infinite", total_steps=10, decay_steps=2, final=0.0)


def test_pure_warmup_reaches_the_peak_in_its_last_step():
    schedule = Schedule(name="cosine", total_steps=10, warmup_steps=10, final=0.1)
    assert (schedule(9), schedule(10)) == (1.0, 0.1)


@pytest.mark.parametrize("name", ["constant", "cosine", "wsd", "infinite"])
@pytest.mark.parametrize("tokens", [1, 16_384, 3 * 16_384, 20_000_000])
def test_default_settings_make_a_schedule_for_a_run_of_any_length(name, tokens):
    config = TrainConfig(tokens=tokens, schedule=name)
    schedule = schedule_of(config)
    assert schedule.total_steps == config.total_steps
    assert all(share > 0 for share in course(schedule))


def test_shares_of_a_run_are_counted_in_its_steps():
    shares = {"warmup": 0.02, "cooldown": 0.1, "decay": 0.3}
    schedule = schedule_of(TrainConfig(tokens=4096 * 1000, batch_tokens=4096, schedule="infinite", **shares))
    assert (schedule.warmup_steps, schedule.cooldown_steps, schedule.decay_steps) == (20, 100, 300)
