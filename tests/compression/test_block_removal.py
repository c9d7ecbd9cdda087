"""What is left when blocks go is a plain checkpoint that computes what the kept blocks compute."""

import pytest
import torch
from deeper_models import deeper
from transformers import AutoModelForCausalLM

from perplab.compression.fusion.removal import block_kind, per_block_settings, remove_blocks, removed_count
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def test_the_model_is_its_kept_blocks_after_saving_loading_and_with_a_cache(family, tiny_model, tmp_path):
    model = deeper(tiny_model(family), 4)
    runner = BlockRunner(model)
    with torch.no_grad():
        stream = runner.run_all(runner.enter(IDS), [0, 3])
        expected = runner.anatomy.logits(runner.anatomy.last_hidden_state(stream))
    remove_blocks(model, [1, 2])
    assert model.config.num_hidden_layers == 2
    assert all(len(values) == 2 for values in per_block_settings(model.config).values())
    assert torch.allclose(logits(model), expected, atol=1e-5)

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    numbers = {
        value
        for module in loaded.modules()
        for name in ("layer_idx", "layer_index")
        if isinstance(value := getattr(module, name, None), int)
    }
    assert numbers == {0, 1}
    for one in (model, loaded):
        greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        cached, anew = (one.generate(IDS[:1], use_cache=use, **greedy) for use in (True, False))
        assert cached.tolist() == anew.tolist()


def test_lists_of_one_value_a_block_keep_those_of_the_kept_blocks(tiny_model):
    model = deeper(tiny_model("gemma2"), 5)
    assert set(per_block_settings(model.config)) == {"layer_types"}
    kinds = [block_kind(model.config, index) for index in range(5)]
    assert kinds[0] != kinds[1]
    remove_blocks(model, [0, 2])
    assert [block_kind(model.config, index) for index in range(3)] == [kinds[1], kinds[3], kinds[4]]


def test_token_ids_are_no_list_of_blocks(tiny_model):
    model = deeper(tiny_model("llama"), 3)
    model.config.eos_token_id = [1, 2, 3]
    remove_blocks(model, [1])
    assert model.config.eos_token_id == [1, 2, 3]


@pytest.mark.parametrize(("blocks", "rate", "count"), [(8, 0.25, 2), (10, 0.3, 3), (7, 0.25, 2), (5, 0, 0)])
def test_a_rate_is_rounded_up_to_whole_blocks(blocks, rate, count):
    assert removed_count(blocks, rate) == count


def test_what_cannot_be_removed_is_refused(tiny_model):
    with pytest.raises(PerplabError, match="leaves 1 of 4"):
        removed_count(4, 0.6)
    model = tiny_model("llama")
    with pytest.raises(PerplabError, match="no block would stay"):
        remove_blocks(model, [0, 1])
    with pytest.raises(PerplabError, match="no block 2"):
        remove_blocks(model, [2])
    numbered = deeper(tiny_model("gpt2"), 3, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(PerplabError, match="number of the block"):
        remove_blocks(numbered, [1])
