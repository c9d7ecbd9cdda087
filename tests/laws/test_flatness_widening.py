import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from perplab.errors import PerplabError
from perplab.laws.flatness import Batch, hessian_trace, widen
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig

SCALED = ("n_embd", "hidden_size", "n_head", "num_attention_heads", "num_key_value_heads", "num_kv_heads")
SCALED += ("word_embed_proj_dim", "intermediate_size", "ffn_dim")
KEPT = ("gpt2", "opt", "opt-projected", "gpt_neox", "gpt_neox-sequential", "llama", "mistral", "qwen2", "qwen3", "phi")
KEPT += ("falcon", "falcon-many-keys", "falcon-new", "falcon-new-one-norm", "olmo2", "cohere")
SHAPE = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def larger(small, layers=3, **changes):
    """Twice the sizes of a model, and more layers."""
    sizes = small.config.to_dict()
    of_each_layer = ("layer_types", "dtype", "rope_parameters" if "rope_parameters" in changes else "")
    sizes = {name: value for name, value in sizes.items() if name not in of_each_layer}
    sizes |= {name: 2 * sizes[name] for name in SCALED if sizes.get(name)}
    depth = "n_layer" if "n_layer" in sizes else "num_hidden_layers"
    return AutoConfig.for_model(**sizes | {depth: layers, "tie_word_embeddings": False} | changes)


def random_decoder(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DecoderForCausalLM(DecoderConfig(**{**SHAPE, **changes})).eval()


def largest_difference(one, other, vocabulary, length=20):
    ids = torch.randint(vocabulary, (3, length), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return float((one(ids).logits - other(ids).logits).abs().max())


@pytest.mark.parametrize("kept", KEPT)
def test_a_wider_and_deeper_model_computes_the_same(tiny_model, kept):
    small = tiny_model(kept)
    large = widen(small, larger(small))
    assert large.num_parameters() > 2.5 * small.num_parameters()
    assert largest_difference(small, large, 101) < 1e-5


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=12)
def test_a_decoder_fits_into_every_multiple_of_its_sizes(hidden, inner, layers, qk_norm, learned, tied):
    changes = {"qk_norm": qk_norm, "position_encoding": "learned" if learned else "rotary"}
    small = random_decoder(tie_word_embeddings=tied, **changes)
    sizes = {
        **SHAPE,
        **changes,
        "hidden_size": hidden * 16,
        "num_attention_heads": hidden * 2,
        "num_key_value_heads": hidden,
        "intermediate_size": inner * 12,
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    assert largest_difference(small, widen(small, DecoderConfig(**sizes)), 23) < 1e-5


def test_a_longer_table_of_positions_keeps_its_beginning(tiny_model):
    small = tiny_model("gpt2")
    large = widen(small, larger(tiny_model("gpt2"), n_positions=2048))
    assert large.transformer.wpe.weight.shape == (2048, 64)
    assert largest_difference(small, large, 101) < 1e-5


def test_deepening_alone_keeps_embeddings_tied():
    small = random_decoder()
    large = widen(small, DecoderConfig(**{**SHAPE, "num_hidden_layers": 3}))
    assert large.lm_head.weight is large.model.embed_tokens.weight
    assert largest_difference(small, large, 23) < 1e-5


def test_repeated_features_flatten_gains_and_sharpen_the_head(tiny_model):
    small = tiny_model("llama")
    text = [Batch.of_rows(torch.randint(101, (4, 9), generator=torch.Generator().manual_seed(0)))]
    own, wide = (hessian_trace(model, text, samples=2) for model in (small, widen(small, larger(small))))
    assert wide.by_module["lm_head"] == pytest.approx(2 * own.by_module["lm_head"], rel=1e-4)
    assert wide.by_module["model.norm"] == pytest.approx(own.by_module["model.norm"] / 2, rel=1e-4)
    assert wide.value != pytest.approx(own.value, rel=1e-2)


def test_the_small_model_stays_and_the_large_one_depends_on_the_seed_alone(tiny_model):
    small = tiny_model("llama").train()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    random_state = torch.random.get_rng_state()
    one, again, other = (widen(small, larger(tiny_model("llama")), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert small.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tie_word_embeddings": True}, "ties the two.*tie_word_embeddings to False"),
        ({"vocab_size": 202}, "vocabularies of 101 and 202"),
        ({"layers": 1}, "2 layers do not fit into 1"),
        ({"head_dim": 16}, "heads of 8 and of 16"),
        ({"intermediate_size": 100}, "gate_proj.weight is .48, 32. in the small model and .100, 64.*whole multiples"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}, "does not compute the same"),
        ({"num_key_value_heads": 8}, "does not compute the same.*equally often"),
    ],
)
def test_a_config_that_cannot_hold_the_model_is_refused(tiny_model, changes, told):
    with pytest.raises(PerplabError, match=told):
        widen(tiny_model("llama"), larger(tiny_model("llama"), **changes))


def test_fewer_positions_are_refused(tiny_model):
    with pytest.raises(PerplabError, match=r"wpe\.weight has 1024 rows"):
        widen(tiny_model("gpt2"), larger(tiny_model("gpt2"), n_positions=512))


def test_another_family_is_refused(tiny_model):
    with pytest.raises(PerplabError, match="llama model does not fit into a gpt2"):
        widen(tiny_model("llama"), larger(tiny_model("gpt2")))


@pytest.mark.parametrize("bound_to_its_width", ["gemma2", "bloom", "mixtral"])
def test_a_family_whose_function_depends_on_its_width_is_refused(tiny_model, bound_to_its_width):
    with pytest.raises(PerplabError, match=r"does not compute the same|whole multiples"):
        widen(tiny_model(bound_to_its_width), larger(tiny_model(bound_to_its_width)))
