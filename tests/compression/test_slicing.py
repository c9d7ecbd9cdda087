"""One rotation for the whole model: exact without a dropped axis, the best choice of axes with one."""

import pytest
import torch
from deeper_models import deeper
from transformers import AutoModelForCausalLM

from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.slicing import SLICEABLE, slicegpt
from perplab.errors import PerplabError

WINDOWS = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(0))


def sliced(model, rate):
    return slicegpt(model, WINDOWS, FuseConfig(method="slicegpt", rate=rate), lambda what, done, total: None, None)


@torch.no_grad()
def logits(model):
    return model(input_ids=WINDOWS, use_cache=False).logits


@pytest.mark.parametrize("name", SLICEABLE)
@pytest.mark.parametrize("tied", [True, False])
def test_a_rotation_alone_changes_nothing(name, tied, tiny_model):
    model = deeper(tiny_model(name), 3, tie_word_embeddings=tied, rms_norm_eps=1e-12)
    rotated, figures = sliced(model, 0.0)
    assert figures["energy kept"] == pytest.approx(1)
    assert not torch.allclose(rotated.model.embed_tokens.weight, model.model.embed_tokens.weight, atol=1e-2)
    assert torch.allclose(logits(rotated), logits(model), atol=1e-4)


@pytest.mark.parametrize("name", SLICEABLE)
def test_what_is_sliced_is_a_plain_narrower_checkpoint(name, tiny_model, tmp_path):
    narrow, figures = sliced(deeper(tiny_model(name), 3), 0.25)
    assert (figures["width before"], figures["width"]) == (32, 24)
    assert narrow.config.hidden_size == narrow.model.embed_tokens.weight.shape[1] == 24
    narrow.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(loaded), logits(narrow), atol=1e-5)
    greedy = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, anew = (loaded.generate(WINDOWS[:1], use_cache=use, **greedy) for use in (True, False))
    assert cached.tolist() == anew.tolist()


def test_biases_of_both_sides_of_the_stream_are_kept(tiny_model):
    model = deeper(tiny_model("llama"), 3, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-12)
    assert torch.allclose(logits(sliced(model, 0.0)[0]), logits(model), atol=1e-4)


def test_a_stream_that_fills_a_part_of_the_width_is_sliced_without_loss(tiny_model):
    """Weights that write to 16 of 32 directions, in a basis that hides them."""
    model = deeper(tiny_model("llama"), 3, rms_norm_eps=1e-12)
    basis = torch.linalg.qr(torch.randn(32, 16, generator=torch.Generator().manual_seed(0))).Q
    plane = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ plane)
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(plane @ writer.weight)
    narrow, figures = sliced(model, 0.5)
    assert figures["width"] == 16
    assert figures["energy kept"] == pytest.approx(1)
    assert torch.allclose(logits(narrow), logits(model), atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "olmo2", "mixtral"])
def test_other_layouts_are_refused_with_the_names_of_those_that_serve(name, tiny_model):
    with pytest.raises(PerplabError, match=f"{name} model.*llama, mistral, qwen2, qwen3"):
        sliced(tiny_model(name), 0.25)


def test_a_rate_that_leaves_no_width_is_refused(tiny_model):
    with pytest.raises(PerplabError, match="leaves less than 8"):
        sliced(tiny_model("llama"), 0.9)
