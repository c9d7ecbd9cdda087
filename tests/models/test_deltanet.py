import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from perplab.errors import PerplabError
from perplab.kernels import delta_rule_reference, linear_attention_reference
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.fla_names import config_from_fla, load_delta_net, weights_from_fla, weights_to_fla
from perplab.models.language_model import load

TOKENS = torch.randint(1, 23, (2, 37), generator=torch.Generator().manual_seed(1))
CLOSE = {"rtol": 0, "atol": 2e-5}
VARIANTS = {
    "plain": {},
    "no convolution": {"conv_size": 0},
    "gate": {"use_gate": True},
    "full strength": {"use_beta": False},
    "negative eigenvalues": {"allow_neg_eigval": True},
    "relu": {"qk_activation": "relu"},
    "sum of elu": {"qk_activation": "elu+1", "qk_norm": "sum"},
    "identity": {"qk_activation": "identity", "conv_size": 2},
    "decay": {"use_decay": True},
}


def decoder(mixer="deltanet", options=None, **shape):
    config = DecoderConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        **({"token_mixers": [mixer, mixer], "mixer_options": {mixer: options or {}}} | shape),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DecoderForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=VARIANTS)
def model(request):
    return decoder(options=VARIANTS[request.param])


def by_hand(layer, hidden_states, options):
    """The layer written out for one document, with torch's convolution and the recurrence."""
    streams = []
    for name in "qkv":
        states = getattr(layer, f"{name}_proj")(hidden_states)
        if options.get("conv_size", 4):
            taps = getattr(layer, f"{name}_conv").weight
            states = F.conv1d(F.pad(states.mT, (taps.shape[1] - 1, 0)), taps[:, None], groups=len(taps)).mT
        kind = options.get("qk_activation", "silu") if name != "v" else "silu"
        states = {"silu": F.silu, "relu": F.relu, "elu+1": lambda x: F.elu(x) + 1, "identity": lambda x: x}[kind](
            states
        )
        states = states.unflatten(-1, (2, 16))
        if name != "v" and options.get("qk_norm") == "sum":
            states = states / states.sum(-1, keepdim=True)
        elif name != "v":
            states = states / (states.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        streams.append(states.transpose(1, 2))
    beta = torch.sigmoid(layer.b_proj(hidden_states)).mT if options.get("use_beta", True) else torch.ones(2, 2, 37)
    beta = 2 * beta if options.get("allow_neg_eigval") else beta
    decay = None
    if options.get("use_decay"):
        decay = -layer.decay_log_rate.exp() * F.softplus(layer.a_proj(hidden_states) + layer.decay_bias)
        decay = decay.mT
    read, _ = delta_rule_reference(*streams, beta, decay=decay)
    read = read.transpose(1, 2)
    read = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.o_norm.weight
    read = read.flatten(2)
    if options.get("use_gate"):
        read = read * F.silu(layer.g_proj(hidden_states))
    return layer.o_proj(read)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_is_what_the_paper_writes(variant):
    model = decoder(options=VARIANTS[variant])
    seen = {}
    layer = model.model.layers[0].self_attn
    layer.register_forward_hook(lambda _, inputs, output: seen.update(inputs=inputs[0], output=output))
    model(TOKENS)
    torch.testing.assert_close(seen["output"], by_hand(layer, seen["inputs"], VARIANTS[variant]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["linear", "retnet"])
def test_baselines_are_the_same_layer_with_another_rule(mixer):
    model = decoder(mixer)
    same = decoder("deltanet")
    missing = same.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all("b_proj" in name for name in missing)
    seen = {}
    layer = model.model.layers[0].self_attn
    recur = layer.recur

    def watch(hidden_states, query, key, value, real, **memory):
        read, state = recur(hidden_states, query, key, value, real, **memory)
        decay = torch.log(1 - torch.tensor([2**-5, 2**-6]))[:, None].expand(2, 2, 37) if mixer == "retnet" else None
        seen["wanted"], seen["found"] = linear_attention_reference(query, key, value, decay=decay)[0], read
        return read, state

    layer.recur = watch
    model(TOKENS, use_cache=False)
    torch.testing.assert_close(seen["found"], seen["wanted"])


@torch.no_grad()
def test_every_option_goes_on_from_its_cache_and_ignores_padding(model):
    expected = model(TOKENS, use_cache=False).logits
    cache, logits = None, []
    for piece in TOKENS.split([20, 1, 2, 14], dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, **CLOSE)
    left, mask = F.pad(TOKENS, (6, 0)), F.pad(torch.ones_like(TOKENS), (6, 0))
    torch.testing.assert_close(model(left, attention_mask=mask).logits[:, 6:], expected, **CLOSE)


@torch.no_grad()
def test_rows_padded_on_the_right_go_on_from_their_own_last_token():
    """Rows of 20 and of 2 tokens are read side by side, and both are continued."""
    for mixer in ("deltanet", "linear", "retnet"):
        model = decoder(mixer)
        mask = torch.ones_like(TOKENS)
        mask[1, 2:20] = 0
        cache = model(TOKENS[:, :20], attention_mask=mask[:, :20], use_cache=True).past_key_values
        rest = model(TOKENS[:, 20:], attention_mask=mask, past_key_values=cache).logits
        alone = model(torch.cat((TOKENS[1:, :2], TOKENS[1:, 20:]), dim=1)).logits
        torch.testing.assert_close(rest[:1], model(TOKENS[:1]).logits[:, 20:], **CLOSE)
        torch.testing.assert_close(rest[1:], alone[:, 2:], **CLOSE)


@torch.no_grad()
def test_padding_in_the_middle_is_not_there():
    model = decoder()
    mask = torch.ones_like(TOKENS)
    mask[:, 7:11] = 0
    kept = mask[0].bool()
    torch.testing.assert_close(
        model(TOKENS, attention_mask=mask).logits[:, kept], model(TOKENS[:, kept]).logits, **CLOSE
    )


@torch.no_grad()
def test_state_is_float32_and_its_size_independent_of_what_was_read():
    model = decoder().to(torch.bfloat16)
    sizes = []
    for length in (5, 37):
        cache = model(TOKENS[:, :length], use_cache=True).past_key_values
        state = cache.layers[0].tensors["state"]
        assert state.dtype == torch.float32
        assert state.shape == (2, 2, 16, 16)
        sizes.append(cache.num_bytes)
    assert sizes[0] == sizes[1]


def test_state_is_float32_under_autocast_also_for_one_token():
    model = decoder()
    for length in (1, 37):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            cache = model(TOKENS[:, :length], use_cache=True).past_key_values
        assert cache.layers[0].tensors["state"].dtype == torch.float32


def test_every_parameter_has_a_gradient(model):
    positions = torch.cat([torch.arange(17), torch.arange(20)]).expand(2, -1)
    model.token_losses(TOKENS, positions, TOKENS.roll(-1, dims=1)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_activation": "gelu"}, "unknown qk_activation 'gelu': choose from silu, relu"),
        ({"qk_norm": "l3"}, "unknown qk_norm 'l3'"),
        ({"qk_norm": "sum"}, "qk_norm sum after silu, whose sum may be zero: choose relu or elu"),
        ({"conv_size": 1}, "conv_size 1: give 2 or more, or 0"),
        ({"convsize": 4}, "unknown option 'convsize' of mixer deltanet"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(PerplabError, match=message):
        decoder(options=options)


FLA = {
    "model_type": "delta_net",
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "norm_eps": 1e-5,
}
# As the layers and models of flash-linear-attention name them.
FLA_LAYER = {
    "attn_norm.weight": (32,),
    "attn.q_proj.weight": (32, 32),
    "attn.k_proj.weight": (32, 32),
    "attn.v_proj.weight": (32, 32),
    "attn.b_proj.weight": (2, 32),
    "attn.q_conv1d.weight": (32, 1, 4),
    "attn.k_conv1d.weight": (32, 1, 4),
    "attn.v_conv1d.weight": (32, 1, 4),
    "attn.o_norm.weight": (16,),
    "attn.o_proj.weight": (32, 32),
    "mlp_norm.weight": (32,),
    "mlp.gate_proj.weight": (48, 32),
    "mlp.up_proj.weight": (48, 32),
    "mlp.down_proj.weight": (32, 48),
}


def fla_weights():
    shapes = {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in FLA_LAYER.items()}
    shapes |= {"model.embeddings.weight": (23, 32), "model.norm.weight": (32,), "lm_head.weight": (23, 32)}
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_checkpoint_of_flash_linear_attention_is_read_from_a_folder(tmp_path):
    weights = fla_weights()
    (tmp_path / "config.json").write_text(json.dumps(FLA))
    save_file(weights, tmp_path / "model.safetensors")
    model = load_delta_net(tmp_path)
    layer = model.model.layers[1].self_attn
    assert torch.equal(layer.k_conv.weight, weights["model.layers.1.attn.k_conv1d.weight"].squeeze(1))
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embeddings.weight"])
    back = weights_to_fla(model.state_dict())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    assert model(TOKENS).logits.isfinite().all()


def test_checkpoint_is_loaded_like_any_other_and_saved_as_a_decoder(tiny_tokenizer, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLA))
    save_file({name: weight.bfloat16() for name, weight in fla_weights().items()}, tmp_path / "model.safetensors")
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    logits = load(tmp_path, dtype="float32").model(TOKENS).logits
    loaded.save(tmp_path / "ours")
    torch.testing.assert_close(load(tmp_path / "ours", dtype="float32").model(TOKENS).logits, logits, **CLOSE)


def test_names_there_and_back_are_the_same():
    for options in VARIANTS.values():
        state = decoder(options=options).state_dict()
        back = weights_from_fla(weights_to_fla(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_hybrids_of_flash_linear_attention_become_hybrids():
    attention = {"layers": [1], "num_heads": 2, "num_kv_heads": 1, "window_size": 64, "rope_theta": 500.0}
    config = config_from_fla(FLA | {"attn": attention, "use_short_conv": False, "qk_activation": "elu"})
    assert config.token_mixers == ["deltanet", "sliding"]
    assert (config.sliding_window, config.num_key_value_heads, config.rope_theta) == (64, 1, 500.0)
    assert config.mixer_options["deltanet"]["conv_size"] == 0
    assert config.mixer_options["deltanet"]["qk_activation"] == "elu+1"
    assert config_from_fla(FLA | {"intermediate_size": None, "hidden_size": 2048}).intermediate_size == 5632


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expand_v": 2.0}, "a delta_net with expand_v 2.0: only 1.0 can be read"),
        ({"attn": {"layers": [2], "num_heads": 2}}, "layer 2 of 2 is assigned twice or does not exist"),
        ({"attn": [{"layers": [1], "num_heads": 2}] * 2}, "layer 1 of 2 is assigned twice"),
        ({"attn": {"layers": [1], "num_heads": 4}}, "only the same heads"),
    ],
)
def test_what_a_decoder_does_not_have_is_refused(wrong, message):
    with pytest.raises(PerplabError, match=message):
        config_from_fla(FLA | wrong)


def test_checkpoints_of_other_models_and_with_odd_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FLA | {"model_type": "gla"}))
    with pytest.raises(PerplabError, match="holds a gla model"):
        load_delta_net(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(FLA))
    weights = fla_weights()
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(PerplabError, match=r"weight model.norm.weight is missing"):
        load_delta_net(tmp_path)


def test_projections_are_linear_layers_by_their_usual_names():
    layer = decoder(options={"use_gate": True}).model.layers[0].self_attn
    names = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "b_proj", "g_proj"}
