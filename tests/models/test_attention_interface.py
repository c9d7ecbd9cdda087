from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from perplab.errors import PerplabError
from perplab.kernels import BlockLayout
from perplab.models import LanguageModel, load
from perplab.models.attention_interface import _mask, sparse_attention

SERVED = ["llama", "gpt2", "qwen2", "opt", "gpt_neox", "gemma2", "mistral"]
LENGTH = 24
TOKENS = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(1))
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
SIZES = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 512}
WINDOWED = {
    "mistral": {**SIZES, **GROUPED, "sliding_window": 5},
    "qwen2": {
        **SIZES,
        **GROUPED,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma2": {
        **SIZES,
        **GROUPED,
        "sliding_window": 5,
        "attn_logit_softcapping": 0.4,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def windowed_model(name):
    config = AutoConfig.for_model(name, **WINDOWED[name], bos_token_id=0, eos_token_id=0, pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def subjects(tiny_model):
    """`subjects(name)`: a model with window or cap where the name is followed by `-windowed`."""
    return lambda name: windowed_model(name.removesuffix("-windowed")) if "-" in name else tiny_model(name)


ALL = [*SERVED, *(f"{name}-windowed" for name in WINDOWED)]


@torch.no_grad()
def logits(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    return model(**{"input_ids": TOKENS, "use_cache": False} | inputs).logits


@pytest.mark.parametrize("name", ALL)
def test_logits_are_those_of_eager_attention(subjects, name):
    model = subjects(name)
    ours, eager = (logits(model, implementation) for implementation in ("perplab", "eager"))
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_logits_of_text_as_they_are(subjects, name, side):
    model = subjects(name)
    mask = torch.ones_like(TOKENS)
    mask[0, slice(0, 7) if side == "left" else slice(-7, None)] = 0
    real = mask[0].bool()
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    padded = logits(model, "perplab", attention_mask=mask, position_ids=position_ids)
    torch.testing.assert_close(padded[1], logits(model, "eager")[1], rtol=0, atol=1e-4)
    alone = logits(model, "eager", input_ids=TOKENS[:1, real])[0]
    torch.testing.assert_close(padded[0, real], alone, rtol=0, atol=1e-4)
    assert padded.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_reading_with_a_cache_gives_the_logits_of_reading_whole(subjects, name):
    model = subjects(name)
    whole = logits(model, "perplab")
    with torch.no_grad():
        first = model(TOKENS[:, :10], use_cache=True)
        middle = model(TOKENS[:, 10:14], past_key_values=first.past_key_values, use_cache=True)
        pieces, cache = [first.logits, middle.logits], middle.past_key_values
        for place in range(14, LENGTH):
            step = model(TOKENS[:, place : place + 1], past_key_values=cache, use_cache=True)
            pieces.append(step.logits)
            cache = step.past_key_values
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2-windowed"])
def test_gradients_of_training_are_those_of_eager_attention(subjects, name):
    model = subjects(name)
    gradients = {}
    for implementation in ("perplab", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients[implementation] = [parameter.grad.clone() for parameter in model.parameters()]
    for ours, eager in zip(gradients["perplab"], gradients["eager"], strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2-windowed"])
def test_dropout_is_applied_in_training(subjects, name):
    model = subjects(name).train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.set_attn_implementation("perplab")
    assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits)


def test_documents_packed_by_position_do_not_see_each_other(tiny_model):
    model = tiny_model("llama")
    position_ids = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    packed = logits(model, "perplab", input_ids=TOKENS[:1], position_ids=position_ids)
    alone = [logits(model, "eager", input_ids=TOKENS[:1, part]) for part in (slice(0, 9), slice(9, None))]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-4)


def test_generated_tokens_are_those_of_eager_attention(tiny_model):
    model = tiny_model("qwen2")
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    texts = []
    for implementation in ("perplab", "eager"):
        model.set_attn_implementation(implementation)
        texts.append(model.generate(TOKENS, attention_mask=mask, max_new_tokens=8, do_sample=False, num_beams=2))
    assert torch.equal(*texts)


def test_no_mask_is_made_for_whole_sequences_with_or_without_a_window():
    windowed, chunked = SimpleNamespace(sliding_window=4), SimpleNamespace(sliding_window=None)
    assert _mask(1, 8, 8, config=chunked) is None
    assert _mask(1, 8, 8, config=windowed, local_size=4) is None
    assert _mask(1, 8, 8, config=chunked, local_size=4) is not None
    assert _mask(1, 1, 8, 7, config=windowed) is not None


def test_a_model_loads_with_it(tiny_model, tiny_tokenizer, tmp_path):
    LanguageModel(tiny_model("llama"), tiny_tokenizer).save(tmp_path / "model")
    model = load(tmp_path / "model", attn_implementation="perplab").model
    assert model.config._attn_implementation == "perplab"
    torch.testing.assert_close(logits(model, "perplab"), logits(model, "eager"), rtol=0, atol=1e-4)


def test_weights_cannot_be_returned(tiny_model):
    model = tiny_model("llama")
    model.set_attn_implementation("perplab")
    with pytest.raises((PerplabError, ValueError)):
        model(TOKENS, output_attentions=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral-windowed"])
def test_a_layout_that_keeps_all_changes_nothing(subjects, name):
    model = subjects(name)
    dense = logits(model, "eager")
    with sparse_attention(model, lambda length: BlockLayout.local(length, 4, 99)), torch.no_grad():
        sparse = model(TOKENS, use_cache=False).logits
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-4)
    assert model.config._attn_implementation == "eager"


def test_a_layout_hides_what_it_does_not_keep(tiny_model):
    model = tiny_model("llama")
    changed = TOKENS.clone()
    changed[:, :4] = 1
    # Two layers of width 1: a token sees its own block alone.
    with sparse_attention(model, lambda length: BlockLayout.local(length, 4, 1)), torch.no_grad():
        before, after = (model(tokens, use_cache=False).logits for tokens in (TOKENS, changed))
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert not torch.equal(before[:, :4], after[:, :4])


def test_a_layout_holds_with_a_cache_and_with_padding(tiny_model):
    model = tiny_model("llama")
    mask = torch.ones_like(TOKENS)
    mask[:, -6:] = 0
    with sparse_attention(model, lambda length: BlockLayout.local(length, 4, 2)), torch.no_grad():
        whole = model(TOKENS, use_cache=False).logits
        padded = model(TOKENS, attention_mask=mask, use_cache=False).logits
        first = model(TOKENS[:, :10], use_cache=True)
        rest = model(TOKENS[:, 10:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(padded[:, :-6], whole[:, :-6], rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat((first.logits, rest), dim=1), whole, rtol=0, atol=1e-4)


def test_a_layout_is_taken_off_after_an_error(tiny_model):
    model = tiny_model("llama")
    before = model.config._attn_implementation

    def broken(length):
        raise PerplabError("no layout", "make one")

    with pytest.raises(PerplabError, match="no layout"), sparse_attention(model, broken):
        model(TOKENS)
    assert model.config._attn_implementation == before
    assert logits(model, "perplab").isfinite().all()


def test_a_family_with_its_own_attention_is_refused(tiny_model):
    with pytest.raises(PerplabError, match="bloom"), sparse_attention(tiny_model("bloom"), BlockLayout.butterfly):
        pass
