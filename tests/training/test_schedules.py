import dataclasses
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
NAMES = ("constant", "cosine", "clipped-cosine", "wsd", "infinite")
DECAY_SHAPES = ("linear", "1-sqrt", "exponential")
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


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_is_that_of_transformers_with_warmup_one_step_earlier(final, shape):
    ours = Schedule(name="wsd", total_steps=100, warmup_steps=10, decay_steps=30, final=final, decay_shape=shape)
    stock = stock_course(
        get_wsd_schedule,
        101,
        num_warmup_steps=10,
        num_decay_steps=30,
        num_training_steps=100,
        decay_type=shape,
        min_lr_ratio=final,
    )
    assert course(ours, 101)[10:] == pytest.approx(stock[10:])
    # Theirs warms up from the floor of the decay.
    assert [final + (1 - final) * share for share in course(ours)[:10]] == pytest.approx(stock[1:11])


@pytest.mark.parametrize("name", NAMES)
def test_warmup_is_linear_and_wastes_no_step(name):
    schedule = Schedule(name=name, total_steps=50, warmup_steps=8, cooldown_steps=5, decay_steps=5, final=0.1)
    assert course(schedule, 8) == pytest.approx([(step + 1) / 8 for step in range(8)])


def test_rewarming_starts_from_the_share_it_is_given():
    schedule = Schedule(name="constant", total_steps=50, warmup_steps=4, start=0.2)
    assert course(schedule, 6) == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    unchanged = Schedule(name="constant", total_steps=50, warmup_steps=4, start=1.0)
    assert course(unchanged) == [1.0] * 50


def test_without_warmup_the_first_step_is_at_the_peak():
    for name in NAMES:
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


@given(
    phases,
    st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(sorted),
    st.sampled_from(NAMES),
    st.sampled_from(["cosine", "inverse-sqrt"]),
    st.sampled_from(DECAY_SHAPES),
)
def test_every_share_lies_between_the_floor_and_the_peak_once_warm(lengths, shares, name, cooling, decaying):
    warmup, cooldown, decay, rest = lengths
    final, plateau = shares
    total = warmup + cooldown + decay + rest + 1
    schedule = Schedule(
        name=name,
        total_steps=total,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        decay_steps=decay,
        plateau=plateau,
        final=final,
        cooldown_shape=cooling,
        decay_shape=decaying,
    )
    assert all(0 < share <= 1 for share in course(schedule, warmup) if warmup)
    after = course(schedule, total + 10)[warmup:]
    assert all(final - 1e-12 <= share <= 1 + 1e-12 for share in after)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
    assert after[-10:] == [after[-10]] * 10  # the last rate stays


@given(st.integers(0, 20), st.integers(10, 200), st.floats(0.01, 1))
def test_clipped_cosine_meets_its_floor_where_the_closed_form_says(warmup, after, final):
    schedule = Schedule(name="clipped-cosine", total_steps=warmup + after, warmup_steps=warmup, final=final)
    meets = warmup + schedule.total_steps * math.acos(2 * final - 1) / math.pi
    shares = course(schedule, schedule.total_steps + 1)[warmup:]
    angles = [math.pi * step / schedule.total_steps for step in range(len(shares))]
    assert shares == pytest.approx([max(final, (1 + math.cos(angle)) / 2) for angle in angles])
    for step, share in enumerate(shares):
        assert (share == final) == (step >= meets - warmup) or abs(step - (meets - warmup)) < 1e-6


def test_clipped_cosine_of_a_tenth_meets_its_floor_at_four_fifths():
    schedule = Schedule(name="clipped-cosine", total_steps=10_000, final=0.1)
    assert next(step for step in range(10_000) if schedule(step) == 0.1) == math.ceil(0.7951672 * 10_000)


def test_clipped_cosine_is_the_cosine_only_without_floor_and_warmup():
    def courses(**settings):
        return [course(Schedule(name=name, total_steps=40, **settings)) for name in ("clipped-cosine", "cosine")]

    assert courses()[0] == courses()[1]
    for settings in ({"final": 0.1}, {"warmup_steps": 4}):
        clipped, to_floor = courses(**settings)
        assert clipped != to_floor


def test_a_run_cut_before_its_horizon_has_the_beginning_of_the_schedule():
    whole = TrainConfig(tokens=4096 * 100, schedule="cosine", warmup=0.1)
    cut = dataclasses.replace(whole, tokens=4096 * 40, horizon_tokens=whole.tokens)
    assert (cut.total_steps, cut.horizon_steps) == (40, 100)
    assert course(schedule_of(cut)) == course(schedule_of(whole))
    assert schedule_of(dataclasses.replace(whole, tokens=4096 * 40)) != schedule_of(whole)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(PerplabError, match="a warm-up of 20 steps is longer than the run of 10"):
        schedule_of(TrainConfig(tokens=4096 * 10, horizon_tokens=4096 * 100, warmup=0.2))


def test_inverse_square_root_falls_like_one_over_the_root_of_a_line_and_meets_its_plateau():
    schedule = Schedule(
        name="infinite", total_steps=100, cooldown_steps=40, plateau=0.25, final=0.1, cooldown_shape="inverse-sqrt"
    )
    inverse_squares = [share**-2 for share in course(schedule, 41)]
    assert inverse_squares == pytest.approx([1 + 15 * step / 40 for step in range(41)])
    assert schedule(60) == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("shape", DECAY_SHAPES)
@pytest.mark.parametrize("name", ["wsd", "infinite"])
def test_every_decay_begins_at_what_was_there_and_ends_at_the_floor(name, shape):
    schedule = Schedule(
        name=name, total_steps=100, cooldown_steps=20, decay_steps=40, plateau=0.5, final=0.1, decay_shape=shape
    )
    high = 0.5 if name == "infinite" else 1.0
    assert schedule(60) == pytest.approx(high, abs=1e-12)
    assert schedule(100) == pytest.approx(0.1, abs=1e-12)
    middle = {
        "linear": (high + 0.1) / 2,
        "1-sqrt": 0.1 + (high - 0.1) * (1 - math.sqrt(0.5)),
        "exponential": math.sqrt(high * 0.1),
    }
    assert schedule(80) == pytest.approx(middle[shape])


def test_infinite_schedule_without_cooldown_is_wsd_with_exponential_decay():
    phases_of = {"total_steps": 60, "warmup_steps": 6, "decay_steps": 20, "final": 0.05}
    infinite = Schedule(name="infinite", plateau=1.0, **phases_of)
    assert course(infinite, 70) == course(Schedule(name="wsd", decay_shape="exponential", **phases_of), 70)


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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"total_steps": 0}, "total_steps is 0"),
        ({"warmup_steps": 1.0}, "warmup_steps is 1.0"),
        ({"warmup_steps": 0.5}, "warmup_steps is 0.5"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"name": "cosine", "final": 1.5}, "lowest rate is 1.5 times the peak"),
        ({"name": "infinite", "final": 0.2, "plateau": 0.1}, "does not lie between the last rate 0.2 and the peak"),
        ({"start": 2.0}, "begins at 2 times the peak"),
        ({"name": "wsd", "decay_steps": 3, "decay_shape": "exponential"}, "cannot end at 0"),
        (
            {"name": "infinite", "cooldown_steps": 3, "plateau": 0.0, "cooldown_shape": "inverse-sqrt"},
            "an inverse square root cannot reach 0",
        ),
    ],
)
def test_what_is_no_course_is_refused(options, complaint):
    with pytest.raises(PerplabError, match=complaint) as caught:
        Schedule(**({"name": "constant", "total_steps": 10} | options))
    assert "\n" not in str(caught.value)


def test_a_share_of_one_is_the_whole_horizon_and_a_count_of_one_a_single_step():
    assert schedule_of(TrainConfig(tokens=4096 * 50, schedule="cosine", warmup=1.0)).warmup_steps == 50
    assert course(Schedule(name="constant", total_steps=50, warmup_steps=1)) == [1.0] * 50


def test_pure_warmup_reaches_the_peak_in_its_last_step():
    schedule = Schedule(name="cosine", total_steps=10, warmup_steps=10, final=0.1)
    assert (schedule(9), schedule(10)) == (1.0, 0.1)


@pytest.mark.parametrize("name", NAMES)
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
