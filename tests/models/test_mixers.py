"""What every token mixer owes the decoder, whatever it computes."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.language_model import LanguageModel, load
from perplab.models.mixer_cache import decoder_cache
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.training.compilation import can_compile, compile_model

LAYERS = {name: [name, name] for name in TOKEN_MIXERS} | {
    "hybrid": ["deltanet", "sliding"],
    "hybrid-global": ["deltanet", "softmax"],
}
VARIANTS = [*LAYERS, "softmax-learned", "softmax-none", "ngram", "deltanet-ngram"]
TOKENS = torch.randint(1, 23, (2, 37), generator=torch.Generator().manual_seed(1))
CLOSE = {"rtol": 0, "atol": 2e-5}


def decoder(variant):
    """A decoder of two layers whose every parameter is random; its window is shorter than the text."""
    name, _, rest = variant.partition("-") if variant not in LAYERS else (variant, "", "")
    options = {"position_encoding": rest} if rest in ("learned", "none") else {}
    if "ngram" in (name, rest):
        options["ngram_heads"] = [[1, 2], []]
    config = DecoderConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        token_mixers=LAYERS.get(name, ["softmax", "softmax"]),
        sliding_window=5,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
        **options,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = DecoderForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=VARIANTS)
def model(request):
    return decoder(request.param)


def positions(*lengths):
    return torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)


@torch.no_grad()
def test_no_token_sees_what_comes_after_it(model):
    changed = TOKENS.clone()
    changed[:, 20:] = changed[:, 20:].roll(1, dims=1) % 22 + 1
    before, after = model(TOKENS).logits, model(changed).logits
    torch.testing.assert_close(before[:, :20], after[:, :20], **CLOSE)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 1e-3


@torch.no_grad()
def test_cache_in_pieces_gives_the_logits_of_one_pass(model):
    for pieces in ([37], [30, 1, 1, 5], [1, 1, 1, 34], [8, 8, 8, 13]):
        cache, logits = None, []
        for piece in TOKENS.split(pieces, dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), model(TOKENS, use_cache=False).logits, **CLOSE)
        assert cache.get_seq_length() == 37


@torch.no_grad()
def test_padding_on_either_side_changes_no_token(model):
    expected = model(TOKENS).logits
    for side, tokens in ((slice(3, None), F.pad(TOKENS, (3, 0))), (slice(0, 37), F.pad(TOKENS, (0, 3)))):
        mask = torch.zeros_like(tokens)
        mask[:, side] = 1
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(tokens, attention_mask=mask, position_ids=position_ids).logits
        torch.testing.assert_close(logits[:, side], expected, **CLOSE)


@torch.no_grad()
def test_rows_of_different_lengths_go_on_from_their_cache(model):
    """Rows padded on the left, read with a cache, and continued by a token at a time."""
    padded, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    padded[0, :9], mask[0, :9] = 0, 0
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = model(
        padded[:, :30], attention_mask=mask[:, :30], position_ids=position_ids[:, :30], use_cache=True
    ).past_key_values
    logits = []
    for end in range(31, 38):
        new = slice(end - 1, end)
        output = model(
            padded[:, new],
            attention_mask=mask[:, :end],
            position_ids=position_ids[:, new],
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(output.logits)
    continued = torch.cat(logits, dim=1)
    torch.testing.assert_close(continued[:1], model(TOKENS[:1, 9:]).logits[:, -7:], **CLOSE)
    torch.testing.assert_close(continued[1:], model(TOKENS[1:]).logits[:, -7:], **CLOSE)


@pytest.mark.parametrize("lengths", [(37,), (1, 36), (20, 1, 1, 15), (5, 7, 9, 16)], ids=str)
def test_packed_documents_give_what_each_gives_alone(model, lengths):
    labels = TOKENS.roll(-1, dims=1)
    packed = model.token_losses(TOKENS, positions(*lengths), labels)
    alone = [
        model.token_losses(document, positions(document.shape[1]), target)
        for document, target in zip(TOKENS.split(lengths, dim=1), labels.split(lengths, dim=1), strict=True)
    ]
    nll = torch.cat([costs.nll.view(2, -1) for costs in alone], dim=1)
    torch.testing.assert_close(packed.nll.view(2, -1), nll, **CLOSE)
    parameters = [*model.parameters()]
    mine = torch.autograd.grad(packed.loss, parameters)
    theirs = torch.autograd.grad(sum(costs.loss for costs in alone), parameters)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_generation_is_what_recomputing_everything_gives_also_with_beams(model):
    padded, mask = TOKENS.clone(), torch.ones_like(TOKENS)
    padded[0, :5], mask[0, :5] = 0, 0
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    for beams in (1, 3):
        cached = model.generate(padded, num_beams=beams, **options)
        recomputed = model.generate(padded, num_beams=beams, use_cache=False, **options)
        assert torch.equal(cached, recomputed)


@torch.no_grad()
def test_saved_model_is_loaded_by_transformers_with_the_same_logits(model, tiny_tokenizer, tmp_path):
    logits = model(TOKENS).logits
    LanguageModel(model, tiny_tokenizer).save(tmp_path)
    torch.testing.assert_close(load(tmp_path).model(TOKENS).logits, logits, **CLOSE)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, logits, **CLOSE)


def test_training_under_autocast_is_training_in_float32_but_for_rounding(model):
    labels = TOKENS.roll(-1, dims=1)
    expected = model.token_losses(TOKENS, positions(17, 20), labels)
    with torch.autocast("cpu", torch.bfloat16):
        costs = model.token_losses(TOKENS, positions(17, 20), labels)
    torch.testing.assert_close(costs.loss, expected.loss, rtol=2e-2, atol=0)
    costs.loss.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_one_token_is_a_sequence(model):
    one = TOKENS[:, :1]
    torch.testing.assert_close(model(one).logits, model(TOKENS).logits[:, :1], **CLOSE)


@torch.no_grad()
def test_cache_of_a_model_that_only_keeps_states_does_not_grow():
    for name, mixer in TOKEN_MIXERS.items():
        if mixer.cache_layer == "state":
            model = decoder(name)
            sizes = [model(TOKENS[:, :length], use_cache=True).past_key_values.num_bytes for length in (9, 37)]
            assert sizes[0] == sizes[1] > 0
            assert model.config.position_limit is None


@torch.no_grad()
def test_cache_filled_by_other_layers_is_refused(model):
    keeps_more = "state" in model.config.cache_layers or any(model.config.ngram_heads)
    cache = decoder("softmax" if keeps_more else "deltanet")(TOKENS, use_cache=True).past_key_values
    with pytest.raises(PerplabError, match="filled by a decoder of another config"):
        model(TOKENS, past_key_values=cache)


@torch.no_grad()
def test_rows_of_a_cache_can_be_repeated_and_chosen(model):
    rest = TOKENS[:, 30:]

    def read():
        return model(TOKENS[:, :30], use_cache=True).past_key_values

    expected = model(rest, past_key_values=read(), use_cache=True).logits
    repeated = read()
    repeated.batch_repeat_interleave(3)
    logits = model(rest.repeat_interleave(3, dim=0), past_key_values=repeated, use_cache=True).logits
    torch.testing.assert_close(logits, expected.repeat_interleave(3, dim=0), **CLOSE)
    chosen = read()
    chosen.batch_select_indices(torch.tensor([1]))
    torch.testing.assert_close(model(rest[1:], past_key_values=chosen, use_cache=True).logits, expected[1:], **CLOSE)


@torch.no_grad()
def test_attention_takes_any_cache_of_transformers():
    model = decoder("softmax")
    cache = DynamicCache()
    model(TOKENS[:, :20], past_key_values=cache)
    torch.testing.assert_close(
        model(TOKENS[:, 20:], past_key_values=cache).logits, model(TOKENS).logits[:, 20:], **CLOSE
    )


def test_new_cache_has_a_layer_for_each_mixer():
    kinds = [type(layer).__name__ for layer in decoder_cache(decoder("hybrid").config).layers]
    assert kinds == ["MixerState", "DynamicSlidingWindowLayer"]


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
@pytest.mark.parametrize("variant", ["hybrid", "complex", "ngram"])
def test_compiled_blocks_compute_the_same(variant):
    plain, compiled = decoder(variant), decoder(variant)
    step = compile_model(compiled)
    labels = TOKENS.roll(-1, dims=1)
    losses = [
        plain.token_losses(TOKENS, positions(17, 20), labels),
        compiled.token_losses(TOKENS, positions(17, 20), labels, chunk_step=step),
    ]
    torch.testing.assert_close(losses[1].nll, losses[0].nll, **CLOSE)
    for costs in losses:
        costs.loss.backward()
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
