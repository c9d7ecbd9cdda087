"""Criteria against their definitions, computed another way."""

import math

import pytest
import torch
import torch.nn.functional as F
from deeper_models import deeper

from perplab.compression.fusion.criteria import CRITERIA, block_influence, macro_influence, sleb_loss
from perplab.compression.fusion.removal import remove_blocks
from perplab.models.blocks import BlockRunner

IDS = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def runner(tiny_model):
    """`runner(blocks)` is of a model with that many; the same each time."""
    return lambda blocks: BlockRunner(deeper(tiny_model("llama"), blocks, rms_norm_eps=1e-12))


def make_identity(block):
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_macro_influence_is_the_turn_of_the_last_hidden_state_without_the_block(runner, removed):
    whole = runner(3)
    scores = macro_influence(whole, list(IDS.split(2)), [0, 1, 2])
    shorter = runner(3).model
    shorter.model.norm = whole.model.model.norm = torch.nn.Identity()
    remove_blocks(shorter, [removed])
    with torch.no_grad():
        states = [model.model(input_ids=IDS).last_hidden_state for model in (whole.model, shorter)]
    assert scores[removed] == pytest.approx(1 - F.cosine_similarity(*states, dim=-1).mean().item(), abs=1e-6)
    assert all(0 <= score <= 2 for score in scores.values())


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_sleb_loss_is_the_loss_of_the_model_without_the_block(runner, removed):
    scores = sleb_loss(runner(3), list(IDS.split(2)), [0, 1, 2])
    shorter = runner(3).model
    remove_blocks(shorter, [removed])
    with torch.no_grad():
        assert scores[removed] == pytest.approx(shorter(input_ids=IDS, labels=IDS).loss.item(), abs=1e-5)


def test_block_influence_is_the_turn_of_the_stream_by_the_block(runner):
    whole = runner(3)
    with torch.no_grad():
        streams = whole.model.model(input_ids=IDS, output_hidden_states=True).hidden_states
    scores = block_influence(whole, [IDS], [0, 1, 2])
    for index in (0, 1):  # the last of these states has gone through the final norm
        turn = 1 - F.cosine_similarity(streams[index], streams[index + 1], dim=-1).mean()
        assert scores[index] == pytest.approx(turn.item(), abs=1e-6)


def test_a_block_that_adds_nothing_goes_first_by_every_criterion(runner):
    whole = runner(4)
    make_identity(whole.blocks[2])
    for name in ("macro_influence", "block_influence"):
        scores = CRITERIA[name](whole, [IDS], range(4))
        assert scores[2] == pytest.approx(0, abs=1e-6)
        assert min(scores, key=scores.get) == 2
    with torch.no_grad():
        loss = whole.model(input_ids=IDS, labels=IDS).loss.item()
    assert sleb_loss(whole, [IDS], range(4))[2] == pytest.approx(loss, abs=1e-5)


def test_macro_influence_does_not_see_the_size_of_the_last_hidden_state(runner):
    """A model whose stream is c times as large, through norms that take c off again."""
    plain, scaled = runner(3), runner(3)
    with torch.no_grad():
        scaled.model.model.embed_tokens.weight.mul_(8)
        for block in scaled.blocks:
            block.self_attn.o_proj.weight.mul_(8)
            block.mlp.down_proj.weight.mul_(8)
    first, second = (macro_influence(one, [IDS], range(3)) for one in (plain, scaled))
    assert all(math.isclose(first[index], second[index], abs_tol=1e-4) for index in range(3))


def test_scores_of_blocks_that_are_left_are_those_of_the_model_without_the_others(runner):
    whole, shorter = runner(4), runner(4).model
    remove_blocks(shorter, [1])
    for criterion in CRITERIA.values():
        left = criterion(whole, [IDS], [0, 2, 3])
        alone = criterion(BlockRunner(shorter), [IDS], [0, 1, 2])
        assert list(left.values()) == pytest.approx(list(alone.values()), abs=1e-6)
        assert list(left) == [0, 2, 3]
