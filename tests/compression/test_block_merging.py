"""LaCo and MKA: their formulas, and that what comes out is a plain smaller model."""

import pytest
import torch
from deeper_models import deeper

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.laco import laco, with_differences
from perplab.compression.fusion.merging import runner_of_alike_blocks, weights_of
from perplab.compression.fusion.mka import mka, similarities, weighted_mean
from perplab.errors import PerplabError

WINDOWS = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(0))


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=generator, dtype=torch.float64).float() for name in ("first", "second")}


def reduced(method, model, **settings):
    watched = []
    config = FuseConfig(**{"rate": 0.5, "scored_windows": 4, "batch": 2} | settings)
    smaller, figures = method(model, WINDOWS, config, lambda what, done, total: watched.append((done, total)), None)
    assert watched[-1][0] == watched[-1][1]
    return smaller, figures


def test_the_difference_of_one_following_block_makes_that_block():
    merged = with_differences(weights(0), [weights(1)])
    for name, weight in merged.items():
        assert torch.allclose(weight, weights(1)[name], atol=1e-6)


def test_differences_of_several_blocks_all_count():
    own, others = weights(0), [weights(seed) for seed in (1, 2, 3)]
    for name, weight in with_differences(own, others).items():
        assert torch.allclose(weight, sum(other[name] for other in others) - 2 * own[name], atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.0, 0.3])
def test_a_weighted_mean_keeps_what_its_share_says(share):
    for name, weight in weighted_mean(weights(0), weights(1), share).items():
        assert torch.allclose(weight, share * weights(0)[name] + (1 - share) * weights(1)[name], atol=1e-6)


@pytest.mark.parametrize("method", [laco, mka])
def test_half_of_the_blocks_go_and_the_rest_is_a_plain_model(method, tiny_model):
    dense = deeper(tiny_model("llama"), 6)
    names = set(dense.state_dict())
    smaller, figures = reduced(method, dense)
    assert smaller.config.num_hidden_layers == len(smaller.model.layers) == 3
    assert set(smaller.state_dict()) < names
    assert figures
    assert torch.isfinite(smaller(input_ids=WINDOWS).logits).all()


@pytest.mark.parametrize("method", [laco, mka])
def test_equal_blocks_merge_into_the_same_block(method, tiny_model):
    model = deeper(tiny_model("llama"), 4)
    block = weights_of(model.model.layers[0])
    for layer in model.model.layers:
        layer.load_state_dict(block)
    smaller, _ = reduced(method, model)
    for layer in smaller.model.layers:
        for name, weight in weights_of(layer).items():
            assert torch.allclose(weight, block[name], atol=1e-6)


def test_laco_gives_up_nothing_for_blocks_that_add_nothing(tiny_model):
    model = deeper(tiny_model("llama"), 5)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.load_state_dict(weights_of(model.model.layers[1]))
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        expected = model(input_ids=WINDOWS).logits
    smaller, figures = reduced(laco, model, rate=0.2)
    assert figures["likeness to the dense model"] == pytest.approx(1, abs=1e-6)
    assert figures["threshold"] == 0.95
    with torch.no_grad():
        assert torch.allclose(smaller(input_ids=WINDOWS).logits, expected, atol=1e-5)


def test_likeness_is_symmetric_and_greatest_for_states_that_are_a_turn_of_one_another():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    unrelated = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    found = similarities([states, 3 * states @ turn, unrelated])
    assert torch.allclose(found, found.T, atol=1e-6)
    assert found[0, 1] == pytest.approx(found[0, 0].item(), rel=1e-3)
    assert 0 <= found[0, 2] < found[0, 1] / 2


def test_blocks_of_two_kinds_do_not_merge(tiny_model):
    with pytest.raises(PerplabError, match="block 1 of this model is of another kind"):
        runner_of_alike_blocks(deeper(tiny_model("gemma2"), 4))
