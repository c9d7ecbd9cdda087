import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3ForCausalLM

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.language_model import LanguageModel, load
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.models.mixers.softmax import SoftmaxAttention
from perplab.models.mixers.token_mixer import TokenMixer
from perplab.models.parts import RMSNorm
from perplab.models.stock import to_decoder, to_stock

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
TOKENS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(1))
CLOSE = {"rtol": 0, "atol": 1e-5}


def decoder(**options):
    """A decoder whose every parameter is random, norms too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DecoderForCausalLM(DecoderConfig(**(SHAPE | options))).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=[(False, True), (True, True), (False, False), (True, False)], ids=str)
def pair(request):
    """A decoder and its stock form, for each of Llama's and Qwen3's layout, tied and not."""
    qk_norm, tied = request.param
    ours = decoder(qk_norm=qk_norm, tie_word_embeddings=tied, rope_theta=500.0)
    return ours, to_stock(ours)


def test_stock_form_gives_the_same_logits_hidden_states_and_loss(pair):
    ours, stock = pair
    assert type(stock) is (Qwen3ForCausalLM if ours.config.qk_norm else LlamaForCausalLM)
    labels = TOKENS.clone()
    labels[0, :5] = -100
    mine, theirs = (model(TOKENS, labels=labels, output_hidden_states=True) for model in pair)
    torch.testing.assert_close(mine.logits, theirs.logits, **CLOSE)
    torch.testing.assert_close(mine.loss, theirs.loss, **CLOSE)
    assert len(mine.hidden_states) == len(theirs.hidden_states)
    for one, other in zip(mine.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_stock_form_gives_the_same_gradients(pair):
    gradients = []
    for model in pair:
        model.zero_grad()
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, **CLOSE)


def test_stock_form_and_back_share_every_parameter(pair):
    ours, stock = pair
    back = to_decoder(stock)
    assert back.config.to_dict() == ours.config.to_dict()
    for model in (stock, back):
        addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        assert addresses == {name: parameter.data_ptr() for name, parameter in ours.named_parameters()}
    assert (back.lm_head.weight is back.model.embed_tokens.weight) == ours.config.tie_word_embeddings
    assert torch.equal(back(TOKENS).logits, ours(TOKENS).logits)


@torch.no_grad()
def test_cache_token_by_token_gives_the_logits_of_one_pass(pair):
    for model in pair:
        whole, cache, pieces = model(TOKENS).logits, None, []
        for piece in TOKENS.split([3, 1, 1, 5, 1, 1], dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **CLOSE)


@torch.no_grad()
def test_generation_agrees_with_the_stock_form_also_with_padding_on_the_left(pair):
    padded, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    padded[0, :5], mask[0, :5] = 0, 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mine, theirs = (model.generate(padded, attention_mask=mask, **options) for model in pair)
    assert torch.equal(mine, theirs)
    alone = pair[0].generate(TOKENS[:1, 5:], attention_mask=mask[:1, 5:], **options)
    assert torch.equal(alone[0], mine[0, 5:])


@torch.no_grad()
def test_padding_on_either_side_does_not_change_the_logits_of_tokens(pair):
    ours, _ = pair
    expected = ours(TOKENS).logits
    for side, tokens in ((slice(3, None), F.pad(TOKENS, (3, 0))), (slice(0, 12), F.pad(TOKENS, (0, 3)))):
        mask = torch.zeros_like(tokens)
        mask[:, side] = 1
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = ours(tokens, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits[:, side], expected, **CLOSE)


@torch.no_grad()
def test_packed_documents_give_what_each_gives_alone():
    model = decoder()
    lengths = [4, 1, 5, 2]
    position_ids = torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)
    packed = model(TOKENS, position_ids=position_ids).logits
    alone = [model(document).logits for document in TOKENS.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_token_losses_are_the_cross_entropy_of_the_logits(tied):
    model = decoder(tie_word_embeddings=tied).double()
    position_ids = torch.arange(12).remainder(5).expand(2, -1)
    labels = TOKENS.roll(-1, dims=1).masked_fill(TOKENS % 7 == 0, -100)
    logits = model(TOKENS, position_ids=position_ids).logits
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    penalty = 0.1 * (torch.logsumexp(logits, dim=-1).square() * (labels >= 0)).sum()
    expected = torch.autograd.grad(nll.sum() + penalty, [*model.parameters()])
    costs = model.token_losses(TOKENS, position_ids, labels, z_loss=0.1)
    torch.testing.assert_close(costs.nll, nll.detach())
    torch.testing.assert_close(costs.loss, nll.sum() + penalty)
    torch.testing.assert_close(torch.autograd.grad(costs.loss, [*model.parameters()]), expected)


def test_logits_to_keep_are_those_of_the_chosen_positions():
    model = decoder()
    logits = model(TOKENS).logits
    torch.testing.assert_close(model(TOKENS, logits_to_keep=3).logits, logits[:, -3:])
    chosen = torch.tensor([0, 7, 2])
    torch.testing.assert_close(model(TOKENS, logits_to_keep=chosen).logits, logits[:, chosen])


def test_embeddings_in_place_of_tokens_give_the_same_logits():
    model = decoder()
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(TOKENS)).logits, model(TOKENS).logits)


def test_float64_is_computed_in_float64():
    single = decoder()
    logits = single(TOKENS).logits
    double = single.double()(TOKENS).logits
    assert double.dtype == torch.float64
    assert 0 < (double - logits).abs().max() < 1e-5


@pytest.mark.parametrize("qk_norm", [False, True])
def test_training_under_autocast_works_with_every_part(qk_norm):
    model = decoder(qk_norm=qk_norm)
    positions, labels = torch.arange(12).expand(2, -1), TOKENS.roll(-1, dims=1)
    expected = model.token_losses(TOKENS, positions, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.token_losses(TOKENS, positions, labels).loss
    loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norm_keeps_the_dtype_of_what_it_norms(dtype):
    norm = RMSNorm(8, 1e-6)
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert norm(states).dtype == dtype
    mean_square = norm(states).double().square().mean(dim=-1)
    torch.testing.assert_close(mean_square, torch.ones(3, dtype=torch.float64), rtol=1e-2, atol=0)


READ_ALONE = """
import sys
sys.modules["perplab"] = None  # importing it fails, as where it is not installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file("tokens")["tokens"]
save_file({name: AutoModelForCausalLM.from_pretrained(name)(tokens).logits for name in ("plain", "normed")}, "logits")
"""


def test_saved_models_are_read_where_perplab_is_not_installed(tiny_tokenizer, tmp_path):
    models = {"plain": decoder(), "normed": decoder(qk_norm=True)}
    for name, model in models.items():
        LanguageModel(model, tiny_tokenizer).save(tmp_path / name)
    save_file({"tokens": TOKENS}, tmp_path / "tokens")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", READ_ALONE], cwd=tmp_path, env=environment, check=True, timeout=60)
    logits = load_file(tmp_path / "logits")
    for name, model in models.items():
        assert torch.equal(logits[name], to_stock(model)(TOKENS).logits)


class RunningMean(TokenMixer):
    """Mix positions by the mean of what came before: needs no cache-aware code to be tested without a cache."""

    cache_layer = "state"

    def __init__(self, config, layer_index):
        super().__init__()
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, context):
        count = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return self.o_proj(hidden_states.cumsum(dim=1) / count)


def test_mixer_of_ones_own_is_used_saved_and_loaded(monkeypatch, tiny_tokenizer, tmp_path):
    monkeypatch.setitem(TOKEN_MIXERS, "running-mean", RunningMean)
    model = decoder(token_mixers=["softmax", "running-mean"])
    assert [type(layer.self_attn) for layer in model.model.layers] == [SoftmaxAttention, RunningMean]
    assert to_stock(model) is None
    logits = model(TOKENS, use_cache=False).logits
    LanguageModel(model, tiny_tokenizer).save(tmp_path)
    loaded = load(tmp_path).model
    assert type(loaded) is DecoderForCausalLM
    assert loaded.config.token_mixers == ["softmax", "running-mean"]
    assert torch.equal(loaded(TOKENS, use_cache=False).logits, logits)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is DecoderForCausalLM


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hiden_size": 3}, "unknown key 'hiden_size'"),
        ({"token_mixers": ["softmax", "magic"]}, "unknown name 'magic' in token_mixers: choose from softmax"),
        ({"channel_mixers": ["swiglu", "magic"]}, "unknown name 'magic' in channel_mixers"),
        ({"token_mixers": ["softmax"]}, "token_mixers names 1 layers of 2"),
        ({"num_key_value_heads": 3}, "4 attention heads over 3 key-value heads"),
        ({"hidden_size": 34}, "hidden_size 34 .* 4 attention heads"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_shape_that_cannot_be_built_is_refused(wrong, message):
    with pytest.raises(PerplabError, match=message):
        DecoderConfig(**(SHAPE | wrong))


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ],
)
def test_stock_model_with_parts_the_decoder_lacks_is_refused(options):
    with pytest.raises(PerplabError, match="llama model with these settings is not a plain decoder"):
        to_decoder(LlamaForCausalLM(LlamaConfig(**(SHAPE | options))))
