import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_scores import literal_scores
from transformers import AutoModelForCausalLM

from perplab.errors import PerplabError
from perplab.models import DecoderConfig, DecoderForCausalLM
from perplab.models.mixers.complex import ComplexOptions, EulerPhase
from perplab.models.parts import rotate
from perplab.models.stock import to_stock
from perplab.training import TrainConfig
from perplab.training.optimizer import new_optimizer

VOCABULARY, LENGTH = 61, 11
HEADS, KEYS, HEAD_DIM = 4, 2, 8


def decoder(seed=0, *, layers=2, mixer="complex", options=None, **changes):
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "initializer_range": 0.3,
        "token_mixers": [mixer] * layers,
        "mixer_options": {"complex": options} if options else {},
    }
    torch.manual_seed(seed)
    return DecoderForCausalLM(DecoderConfig(**shape | changes)).eval()


def with_random_phases(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".phase." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def tokens(seed=0, batch=2, length=LENGTH):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def rotary_angles(length, width, dtype, first=0):
    frequency = 10_000.0 ** (-torch.arange(width // 2, dtype=dtype) / (width // 2))
    angles = (torch.arange(length, dtype=dtype) + first)[:, None] * frequency
    angles = torch.cat((angles, angles), dim=-1)[None]
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("per", ["pair", "head", "shared"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), rotary_dim=st.sampled_from([2, 4, HEAD_DIM]), keys=st.sampled_from([1, 2, 4]))
def test_the_factored_scores_are_the_literal_ones(per, dtype, tolerance, seed, rotary_dim, keys):
    torch.manual_seed(seed)
    phase = EulerPhase(
        HEADS, HEAD_DIM, num_key_value_heads=keys, rotary_dim=rotary_dim, options=ComplexOptions(per=per)
    ).to(dtype)
    torch.nn.init.normal_(phase.delta)
    torch.nn.init.normal_(phase.bias)
    query = torch.randn(2, HEADS, LENGTH, HEAD_DIM, dtype=dtype)
    key = torch.randn(2, keys, LENGTH, HEAD_DIM, dtype=dtype)
    turned = []
    for states in phase(query, key):
        rotary = rotate(states[..., :rotary_dim], rotary_angles(LENGTH, rotary_dim, dtype))
        turned.append(torch.cat((rotary, states[..., rotary_dim:]), dim=-1))
    scores = turned[0] @ turned[1].repeat_interleave(HEADS // keys, dim=1).transpose(-1, -2) * HEAD_DIM**-0.5
    pairs = rotary_dim // 2
    delta = phase.delta if per == "shared" else phase.delta.repeat_interleave(HEADS // keys, dim=0)
    delta, bias = delta.expand(HEADS, pairs), phase.bias.expand(HEADS, pairs)
    expected = literal_scores(query, key, delta, bias, torch.arange(LENGTH, dtype=dtype))
    error = (scores - expected).abs().max() / expected.abs().max()
    assert error <= tolerance


@pytest.mark.parametrize("scale", [None, 1.0, 0.2])
def test_a_layer_is_the_softmax_of_the_literal_scores(scale):
    model = with_random_phases(decoder(layers=1, options={"attention_scale": scale}))
    attention = model.model.layers[0].self_attn
    seen = {}
    attention.register_forward_hook(lambda _, inputs, output: seen.update(read=inputs[0], mixed=output))
    with torch.no_grad():
        model(tokens())
        query, key, value = (
            projection(seen["read"]).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        delta, bias = attention.phase.delta.repeat_interleave(HEADS // KEYS, dim=0), attention.phase.bias
        scores = literal_scores(query, key, delta, bias, torch.arange(LENGTH).float(), scale=scale)
        future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        mixed = weights @ value.repeat_interleave(HEADS // KEYS, dim=1)
        torch.testing.assert_close(seen["mixed"], attention.o_proj(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("per", ["pair", "head", "shared"])
def test_started_at_rope_it_is_the_rotary_decoder_to_the_bit(per, qk_norm):
    rotary = decoder(mixer="softmax", qk_norm=qk_norm)
    model = decoder(1, options={"init": "rope", "per": per}, qk_norm=qk_norm)
    assert not model.load_state_dict(rotary.state_dict(), strict=False).unexpected_keys
    with torch.no_grad():
        logits = model(tokens()).logits
        assert torch.equal(logits, rotary(tokens()).logits)
        torch.testing.assert_close(logits, to_stock(rotary)(tokens()).logits, rtol=1e-5, atol=1e-5)


def test_at_delta_zero_only_magnitudes_count():
    model = decoder(options={"init": "zero"})
    with torch.no_grad():
        before = model(tokens()).logits
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                rows = projection.weight.unflatten(0, (-1, 2, HEAD_DIM // 2))
                angle = torch.randn(len(rows), HEAD_DIM // 2, 1)
                first, second = rows[:, 0].clone(), rows[:, 1].clone()
                rows[:, 0] = first * angle.cos() - second * angle.sin()
                rows[:, 1] = first * angle.sin() + second * angle.cos()
        torch.testing.assert_close(model(tokens()).logits, before, rtol=1e-4, atol=1e-4)
    rotary = decoder(mixer="softmax")
    with torch.no_grad():
        before = rotary(tokens()).logits
        rotary.model.layers[0].self_attn.q_proj.weight.neg_()
        assert (rotary(tokens()).logits - before).abs().max() > 0.1


def test_moving_all_positions_changes_nothing():
    model = with_random_phases(decoder())
    positions = torch.arange(LENGTH)[None]
    with torch.no_grad():
        logits = [model(tokens(), position_ids=positions + shift).logits for shift in (0, 1, 40)]
    for moved in logits[1:]:
        torch.testing.assert_close(moved, logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [0, 4, LENGTH - 1])
def test_no_token_changes_what_was_said_before_it(place):
    model = with_random_phases(decoder())
    changed = tokens()
    changed[:, place] = (changed[:, place] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(tokens()).logits, model(changed).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place], after[:, place])


def test_padding_on_the_left_changes_nothing():
    model = with_random_phases(decoder())
    padded = torch.nn.functional.pad(tokens(), (3, 0))
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    with torch.no_grad():
        alone = model(tokens()).logits
        beside = model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0)).logits
    torch.testing.assert_close(beside[:, 3:], alone, rtol=1e-4, atol=1e-4)


def test_with_a_cache_of_turned_keys_it_says_the_same():
    model = with_random_phases(decoder())
    ids = tokens()
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :6], use_cache=True)
        rest = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), dim=1), whole, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_the_packed_kernel_and_a_masked_product_agree():
    model = with_random_phases(decoder())
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0  # sends the whole batch through the masked path
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, attention_mask=mask).logits[0], model(ids).logits[0], rtol=1e-4, atol=1e-4
        )


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_it_costs_one_hidden_size_of_parameters_a_layer():
    plain = decoder(mixer="softmax", num_key_value_heads=HEADS)
    model = decoder(num_key_value_heads=HEADS)
    assert parameters(model) - parameters(plain) == 2 * 32


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"per": "head"}, HEADS + KEYS),
        ({"per": "shared"}, 2),
        ({"learn_bias": False}, KEYS * HEAD_DIM // 2),
        ({"learn_delta": False}, HEADS * HEAD_DIM // 2),
        ({"learn_delta": False, "learn_bias": False}, 0),
        ({"learn_delta": False, "learn_bias": False, "learn_temperature": True, "per": "head"}, HEADS),
    ],
)
def test_options_say_what_is_learned(options, extra):
    model = decoder(layers=1, options=options)
    assert parameters(model) - parameters(decoder(layers=1, mixer="softmax")) == extra
    positions = torch.arange(LENGTH).expand(2, -1)
    model.token_losses(tokens(), positions, tokens(1)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_temperature_is_a_factor_on_the_scores_of_a_head():
    given = {"learn_temperature": True, "per": "head", "init": "rope"}
    model, scaled = decoder(options=given), decoder(options=given | {"attention_scale": 2 * HEAD_DIM**-0.5})
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, decoder(options={"init": "rope"})(tokens()).logits)
        for layer in model.model.layers:
            layer.self_attn.phase.temperature.fill_(torch.tensor(2.0).log())
        torch.testing.assert_close(model(tokens()).logits, scaled(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("init", "mean", "deviation"), [("rope", 1, 0), ("zero", 0, 0), ("author", 0, 0.25)])
def test_delta_starts_where_the_option_says(init, mean, deviation):
    torch.manual_seed(0)
    phase = EulerPhase(256, 32, options=ComplexOptions(init=init))
    assert phase.delta.shape == (256, 16)
    assert abs(phase.delta.mean() - mean) < 0.02
    assert abs(phase.delta.std() - deviation) < 0.02
    assert (phase.bias == 0).all()


def test_weight_decay_leaves_the_phases_alone():
    model = decoder(options={"learn_temperature": True})
    phases = {name for name, _ in model.named_parameters() if ".phase." in name}
    assert len(phases) == 6
    decayed, spared = new_optimizer(model, TrainConfig()).param_groups
    assert decayed["weight_decay"] > 0
    assert spared["weight_decay"] == 0
    for name in phases:
        assert any(parameter is model.get_parameter(name) for parameter in spared["params"])


@pytest.mark.parametrize("options", [{}, {"learn_delta": False}, {"per": "shared", "learn_temperature": True}])
def test_saved_and_loaded_it_says_the_same(options, tmp_path):
    model = with_random_phases(decoder(options=options))
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert {*dict(again.named_parameters())} == {*dict(model.named_parameters())}


@pytest.mark.parametrize("encoding", ["none", "learned"])
def test_the_map_also_works_without_rotary_positions(encoding):
    plain = decoder(mixer="softmax", position_encoding=encoding)
    model = decoder(options={"init": "rope"}, position_encoding=encoding)
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, plain(tokens()).logits)
        assert not torch.allclose(with_random_phases(model)(tokens()).logits, plain(tokens()).logits, atol=1e-3)


def test_training_in_bfloat16_keeps_finite_gradients():
    model = decoder().train()
    positions = torch.arange(LENGTH).expand(2, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.token_losses(tokens(), positions, tokens(1)).loss
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_dead_query_keeps_finite_gradients():
    model = decoder().train()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.k_proj.weight.mul_(1e-20)
    positions = torch.arange(LENGTH).expand(2, -1)
    model.token_losses(tokens(), positions, tokens(1)).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"per": "token"}, {"init": "one"}, {"attention_scale": 0.0}, {"attention_scale": float("nan")}, {"delta": 1}],
)
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(PerplabError):
        decoder(options=options)


@pytest.mark.parametrize("rotary_dim", [3, 0, 10])
def test_pairs_that_do_not_fit_the_head_are_refused(rotary_dim):
    with pytest.raises(PerplabError, match="rotary"):
        EulerPhase(HEADS, HEAD_DIM, rotary_dim=rotary_dim)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(PerplabError, match="key-value"):
        EulerPhase(HEADS, HEAD_DIM, num_key_value_heads=3)
