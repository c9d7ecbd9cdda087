import copy

import pytest
import torch
from literal_scores import literal_scores
from transformers import AutoConfig, AutoModelForCausalLM

from perplab.errors import PerplabError
from perplab.models import DecoderForCausalLM, LanguageModel, load
from perplab.models.complex_conversion import convert_to_complex, train_only_phases
from perplab.models.mixers.complex import EulerPhase
from perplab.models.phase_analysis import phases, position_share
from perplab.models.phased_model import PhasedForCausalLM

DECODERS = ("llama", "qwen3", "perplab_decoder")
WRAPPED = ("mistral", "qwen2", "gemma2", "olmo2", "phi", "gpt_neox", "gpt_neox-sequential", "mixtral")
TOKENS = torch.randint(3, 90, (2, 13), generator=torch.Generator().manual_seed(0))


def with_random_phases(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for phase in phases_of(model):
            for parameter in phase.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def phases_of(model):
    return [module for module in model.modules() if isinstance(module, EulerPhase)]


@torch.no_grad()
def logits(model, **options):
    return model(input_ids=TOKENS, use_cache=False, **options).logits


@pytest.mark.parametrize("name", DECODERS + WRAPPED)
def test_conversion_changes_no_bit_of_what_a_wrapped_model_says(name, tiny_model):
    model = tiny_model(name)
    before = logits(model)
    converted = convert_to_complex(model)
    assert isinstance(converted, DecoderForCausalLM if name in DECODERS else PhasedForCausalLM)
    if name in DECODERS:
        torch.testing.assert_close(logits(converted), before, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(logits(converted), before)
    assert not torch.allclose(logits(with_random_phases(converted)), before, atol=1e-3)


@pytest.mark.parametrize("name", DECODERS + WRAPPED)
def test_saved_and_loaded_it_says_the_same(name, tiny_model, tiny_tokenizer, tmp_path):
    converted = with_random_phases(convert_to_complex(tiny_model(name)))
    expected = logits(converted)
    converted.save_pretrained(tmp_path / "by transformers")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "by transformers")), expected)
    LanguageModel(converted, tiny_tokenizer).save(tmp_path / "by perplab")
    assert torch.equal(logits(load(tmp_path / "by perplab").model), expected)


@pytest.mark.parametrize("name", DECODERS + WRAPPED)
def test_a_copy_is_independent(name, tiny_model):
    converted = with_random_phases(convert_to_complex(tiny_model(name)))
    before = logits(converted)
    other = with_random_phases(copy.deepcopy(converted), seed=2)
    assert not torch.allclose(logits(other), before, atol=1e-3)
    assert torch.equal(logits(converted), before)


@pytest.mark.parametrize("name", DECODERS + WRAPPED)
def test_it_stays_causal_and_a_cache_and_padding_change_nothing(name, tiny_model):
    model = with_random_phases(convert_to_complex(tiny_model(name)))
    expected = logits(model)
    changed = TOKENS.clone()
    changed[:, 7] += 1
    padded = torch.nn.functional.pad(TOKENS, (3, 0), value=5)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=changed, use_cache=False).logits[:, :7], expected[:, :7], atol=1e-6)
        first = model(input_ids=TOKENS[:, :6], use_cache=True)
        rest = model(input_ids=TOKENS[:, 6:], past_key_values=first.past_key_values, use_cache=True)
        beside = model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), dim=1), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(beside[:, 3:], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_greedy_generation_with_and_without_a_cache_agree(name, tiny_model):
    model = with_random_phases(convert_to_complex(tiny_model(name)))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(TOKENS, **options)
    assert cached.shape == (2, 19)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **options))
    assert model.generate(TOKENS, num_beams=2, **options).shape == (2, 19)


def first_queries_and_keys(model, name):
    """Queries and keys of the first layer as its projections and norms make them, without phases."""
    attention = model.gpt_neox.layers[0].attention if name == "gpt_neox" else model.model.layers[0].self_attn
    seen = {}
    hooked = [attention.query_key_value] if name == "gpt_neox" else [attention.q_proj, attention.k_proj]
    for part, norm in (("q_proj", "q_norm"), ("k_proj", "k_norm")):
        if getattr(attention, norm, None) is not None:
            hooked[part == "k_proj"] = getattr(attention, norm)
    for index, module in enumerate(hooked):
        module.register_forward_hook(lambda _, __, output, index=index: seen.setdefault(index, output))
    logits(model)
    head_dim = attention.head_size if name == "gpt_neox" else attention.head_dim
    if name == "gpt_neox":
        query, key, _ = seen[0].unflatten(-1, (-1, 3 * head_dim)).chunk(3, dim=-1)
    else:
        query, key = (seen[index].reshape(*TOKENS.shape, -1, head_dim) for index in (0, 1))
    return query.transpose(1, 2), key.transpose(1, 2), attention


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2", "olmo2", "phi", "gpt_neox"])
def test_attention_is_the_softmax_of_the_literal_scores(name, tiny_model):
    query, key, _ = first_queries_and_keys(tiny_model(name), name)
    base = tiny_model(name)
    base.set_attn_implementation("eager")
    model = with_random_phases(convert_to_complex(base))
    phase = phases_of(model)[0]
    weights = model(input_ids=TOKENS, output_attentions=True, use_cache=False).attentions[0]
    delta = phase.delta.repeat_interleave(phase.queries_per_key, dim=0)
    length, config = TOKENS.shape[1], base.config
    scale = config.query_pre_attn_scalar**-0.5 if name == "gemma2" else query.shape[-1] ** -0.5
    theta = config.rope_parameters["rope_theta"]
    scores = literal_scores(query, key, delta, phase.bias, torch.arange(length).float(), theta=theta, scale=scale)
    if name == "gemma2":
        scores = torch.tanh(scores / config.attn_logit_softcapping) * config.attn_logit_softcapping
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    torch.testing.assert_close(
        weights, scores.masked_fill(future, float("-inf")).softmax(-1), rtol=1e-4, atol=1e-5, check_stride=False
    )


def test_rotary_positions_that_are_scaled_stay_so():
    torch.manual_seed(0)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", **shape, num_hidden_layers=1, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    before = logits(model)
    converted = convert_to_complex(model)
    assert isinstance(converted, PhasedForCausalLM)
    assert torch.equal(logits(converted), before)


@pytest.mark.parametrize("name", ["llama", "phi", "gpt_neox"])
@pytest.mark.parametrize("options", [{}, {"per": "head"}, {"per": "shared", "learn_bias": False}])
def test_training_only_the_phases_moves_nothing_else(name, options, tiny_model):
    model = convert_to_complex(tiny_model(name), **options).train()
    trained = train_only_phases(model)
    assert len(trained) == 2 * (1 if options.get("learn_bias") is False else 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(trained, lr=0.5)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (".phase." not in key), key


def test_all_pairs_of_multi_head_attention_cost_a_hidden_size_a_layer(tiny_model):
    model = convert_to_complex(tiny_model("gpt_neox"))
    rotary = int(0.25 * 8)
    assert sum(parameter.numel() for parameter in train_only_phases(model)) == 2 * 4 * rotary
    model = convert_to_complex(tiny_model("llama"))
    assert sum(parameter.numel() for parameter in train_only_phases(model)) == 2 * (4 + 2) * 4


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "falcon", "cohere"])
def test_families_that_turn_otherwise_are_refused_in_one_line(name, tiny_model):
    with pytest.raises(PerplabError) as refused:
        convert_to_complex(tiny_model(name))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_a_converted_model_is_not_converted_again(name, tiny_model):
    with pytest.raises(PerplabError, match="already"):
        convert_to_complex(convert_to_complex(tiny_model(name)))


def test_a_model_without_phases_has_none_to_train_or_to_show(tiny_model):
    for function in (train_only_phases, phases, lambda model: position_share(model, TOKENS)):
        with pytest.raises(PerplabError, match="no phases"):
            function(tiny_model("llama"))


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_the_table_has_a_row_for_each_query_head(name, tiny_model):
    model = convert_to_complex(tiny_model(name))
    assert {row[2:] for row in phases(model)} == {(1.0, 0.0, 0.0, 0.0)}
    with_random_phases(model)
    rows = phases(model)
    assert [(row.layer, row.head) for row in rows] == [(layer, head) for layer in range(2) for head in range(4)]
    second = phases_of(model)[1].requires_grad_(False)
    last_delta = second.delta[3 // second.queries_per_key]
    assert rows[4 + 3].delta == pytest.approx(float(last_delta.mean()), rel=1e-6)
    assert rows[4 + 3].bias_deviation == pytest.approx(float(second.bias[3].std(correction=0)), rel=1e-6, abs=1e-7)


def test_scores_without_content_are_all_position_and_without_position_none(tiny_model):
    model = convert_to_complex(tiny_model("perplab_decoder"))
    ids = torch.randint(3, 90, (8, 24), generator=torch.Generator().manual_seed(1))
    assert position_share(model, ids).shape == (2, 4)
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[0]  # every token is the same
        torch.testing.assert_close(position_share(model, ids)[0], torch.ones(4, dtype=torch.float64))
    model = convert_to_complex(tiny_model("perplab_decoder"))
    del model.model.rotary_emb
    assert position_share(model, ids)[0].abs().max() < 0.03


@pytest.mark.parametrize("name", ["qwen2", "gpt_neox"])
def test_loaded_in_bfloat16_phases_stay_float32(name, tiny_model, tmp_path):
    converted = with_random_phases(convert_to_complex(tiny_model(name)))
    converted.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    for phase, original in zip(phases_of(loaded), phases_of(converted), strict=True):
        assert torch.equal(phase.delta, original.delta)
    assert logits(loaded).dtype == torch.bfloat16
    torch.testing.assert_close(logits(loaded).float(), logits(converted), rtol=0.1, atol=0.3)
