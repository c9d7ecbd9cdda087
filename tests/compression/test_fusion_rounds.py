"""Rounds of removal: who makes up for whom, what training does, and that a killed run comes to the same end."""

import math

import pytest
import torch
from deeper_models import deeper
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.distillation import batch_kl, distil, lesson_of, loss_of, mse
from perplab.compression.fusion.fusion_layer import graft, make_trainable
from perplab.compression.fusion.grafting import group_around, remove_one_by_one
from perplab.compression.fusion.reduction import batches_of
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner

WINDOWS = torch.randint(3, 90, (8, 10), generator=torch.Generator().manual_seed(0))
SMALL = {"rate": 0.3, "group": 3, "rank": 2, "epochs": 2, "batch": 4, "scored_windows": 4}


def unwatched(what, done, total):
    pass


def removed(model, *, donors=True, watch=unwatched, checkpoint=None, **settings):
    config = FuseConfig(**SMALL | settings)
    return remove_one_by_one(model, WINDOWS, config, watch, checkpoint, donors=donors)


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_a_group_is_as_large_as_it_can_be_and_holds_its_block(blocks, neighbours, data):
    alive = sorted(data.draw(st.sets(st.integers(0, 60), min_size=blocks, max_size=blocks)))
    block = data.draw(st.sampled_from(alive))
    group = group_around(block, alive, neighbours)
    assert block in group.members
    assert len(group.members) == min(neighbours + 1, blocks)
    assert [*group.before, *group.members, *group.after] == alive


def test_a_group_lies_about_its_block_and_moves_inside_at_the_ends():
    alive = list(range(32))
    assert group_around(10, alive, 7).members == list(range(6, 14))
    assert group_around(0, alive, 7).members == list(range(8))
    assert group_around(31, alive, 7).members == list(range(24, 32))


@given(st.integers(1, 50), st.integers(1, 12))
def test_batches_hold_every_window_once_and_differ_by_one_at_most(windows, batch):
    parts = batches_of(torch.arange(windows), batch)
    assert torch.equal(torch.cat(parts), torch.arange(windows))
    sizes = list(map(len, parts))
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_loss_sees_no_error_that_all_windows_share_and_no_window_alone():
    target, output = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    shared = torch.randn(1, 5, 6)
    assert batch_kl(output + shared, target).item() == pytest.approx(batch_kl(output, target).item(), abs=1e-5)
    assert mse(output + shared, target) > mse(output, target)
    assert batch_kl(target, target).item() == pytest.approx(0, abs=1e-6)
    probabilities = [tensor.softmax(dim=0) for tensor in (target, output)]
    divergence = (probabilities[0] * (probabilities[0] / probabilities[1]).log()).sum() / 4
    assert batch_kl(output, target).item() == pytest.approx(divergence.item(), rel=1e-5)
    with pytest.raises(PerplabError, match="batch of one window"):
        batch_kl(output[:1], target[:1])


def test_the_token_loss_is_the_divergence_of_the_models_predictions(tiny_model):
    runner = BlockRunner(deeper(tiny_model("gemma2"), 3))
    batch = WINDOWS[:2]
    with torch.no_grad():
        whole = runner.model(input_ids=batch, use_cache=False).logits.log_softmax(-1)
        stream = runner.enter(batch)
        without = runner.run_all(stream, [0, 2])
        parts = runner.anatomy
        shorter = parts.logits(parts.last_hidden_state(without)).log_softmax(-1)
        expected = (whole.exp() * (whole - shorter)).sum(-1).mean()
        loss = loss_of("token_kl", runner, [2])
        found = loss(runner.run(0, stream), runner.run_all(stream, [0, 1]))
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def trained_group(model, loss, **settings):
    """Losses of a group of three, of which block 1 has left, before and after training."""
    config = FuseConfig(**SMALL | settings)
    model.requires_grad_(False)
    runner, generator = BlockRunner(model), torch.Generator().manual_seed(0)
    lesson = lesson_of(runner, batches_of(WINDOWS, config.batch), [], [0, 1, 2])
    for index in (0, 2):
        make_trainable(runner.blocks[index], 2, generator)
        graft(runner.blocks[index], runner.blocks[1], generator)
    return distil(runner, [0, 2], lesson, loss_of(loss, runner, [3]), config, generator, lambda done, total: None)


@pytest.mark.parametrize("loss", ["mse", "batch_kl", "token_kl"])
def test_training_with_small_steps_on_the_whole_set_lowers_every_loss(tiny_model, loss):
    small = {"coefficient_learning_rate": 1e-3, "learning_rate": 1e-3, "batch": 8, "epochs": 15}
    before, after = trained_group(deeper(tiny_model("llama"), 4), loss, **small)
    assert 0 < after < before


def test_there_is_nothing_to_learn_where_the_removed_block_added_nothing(tiny_model):
    model = deeper(tiny_model("llama"), 4)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    before, after = trained_group(model, "mse", epochs=1)
    assert before == pytest.approx(0, abs=1e-12)
    assert after == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("donors", [True, False])
def test_rounds_leave_a_plain_model_of_fewer_blocks(tiny_model, donors):
    model, figures = removed(deeper(tiny_model("qwen3"), 5), donors=donors)
    assert model.config.num_hidden_layers == len(model.model.layers) == 3
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert figures["round 2/loss after"] < figures["round 2/loss before"]
    assert {figures["round 1/block"], figures["round 2/block"]} < {1, 2, 3}
    assert torch.isfinite(model(input_ids=WINDOWS).logits).all()


def test_every_family_can_be_fused(family, tiny_model):
    model = deeper(tiny_model(family), 4)
    smaller, figures = removed(model, rate=0.25, epochs=1, donors=True)
    assert smaller.config.num_hidden_layers == 3
    assert math.isfinite(figures["round 1/loss after"])
    assert set(smaller.state_dict()) < set(deeper(tiny_model(family), 4).state_dict())


def test_donors_go_to_blocks_of_their_own_kind(tiny_model):
    plain, fused = (removed(deeper(tiny_model("gemma2"), 3), donors=donors, group=2)[0] for donors in (False, True))
    for name, weight in plain.state_dict().items():  # kinds alternate, so the middle block's neighbours take no donor
        assert torch.equal(weight, fused.state_dict()[name])


def test_a_rate_of_zero_changes_nothing(tiny_model):
    model, dense = deeper(tiny_model("llama"), 3), deeper(tiny_model("llama"), 3).state_dict()
    smaller, figures = removed(model, rate=0.0)
    assert figures == {}
    assert all(torch.equal(weight, dense[name]) for name, weight in smaller.state_dict().items())


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name_of_family", ["llama", "mixtral", "gpt2"])
def test_a_killed_run_comes_to_the_same_end(tiny_model, tmp_path, name_of_family):
    """It is killed when a block has left that had absorbed another."""
    settings = {"group": 5, "rate": 0.5, "protect_ends": False}
    whole, told = removed(deeper(tiny_model(name_of_family), 6), **settings)

    def kill(what, done, total):
        if "3 of 3" in what and done == 2:
            raise KilledError

    folder = tmp_path / "checkpoint"
    with pytest.raises(KilledError):
        removed(deeper(tiny_model(name_of_family), 6), watch=kill, checkpoint=folder, **settings)
    seen = []
    resumed, again = removed(
        deeper(tiny_model(name_of_family), 6),
        watch=lambda what, done, total: seen.append(what),
        checkpoint=folder,
        **settings,
    )
    assert {what.split()[-3] for what in seen} == {"3"}
    assert {name: value for name, value in again.items() if "seconds" not in name} == {
        name: value for name, value in told.items() if "seconds" not in name
    }
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_a_checkpoint_of_another_model_is_refused(tiny_model, tmp_path):
    removed(deeper(tiny_model("llama"), 5), checkpoint=tmp_path / "checkpoint")
    with pytest.raises(PerplabError, match="does not fit this model"):
        removed(deeper(tiny_model("llama"), 5, intermediate_size=40), checkpoint=tmp_path / "checkpoint")


def test_the_seed_decides_the_outcome(tiny_model):
    first, again, other = (removed(deeper(tiny_model("llama"), 4), seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in first.items())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rate": 1.0}, "rate is 1.0"),
        ({"group": 0}, "group is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"length": 1}, "length is 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"loss": "batch_kl", "batch": 1}, "there is one"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(settings, problem):
    with pytest.raises(PerplabError, match=problem):
        FuseConfig(**settings)
