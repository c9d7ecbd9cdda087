"""Continuing a prompt."""

import pytest
import torch

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.generation import GenerateConfig, generate


@pytest.fixture
def language_model(tiny_model, tiny_tokenizer):
    return LanguageModel(tiny_model("perplab_decoder"), tiny_tokenizer)


def test_same_seed_same_text_and_the_global_generator_is_left_alone(language_model):
    config = GenerateConfig(max_new_tokens=20, seed=3)
    before = torch.get_rng_state()
    first = generate(language_model, "ab", config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert generate(language_model, "ab", config) == first
    others = {generate(language_model, "ab", GenerateConfig(max_new_tokens=20, seed=seed)) for seed in range(4, 8)}
    assert others != {first}


def test_temperature_zero_takes_the_likeliest_token_each_time(language_model):
    text = generate(language_model, "ab", GenerateConfig(max_new_tokens=5, temperature=0))
    ids = [0, *language_model.tokenizer.encode("ab")]
    for _ in range(5):
        with torch.no_grad():
            likeliest = int(language_model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if likeliest == 0:
            break
        ids.append(likeliest)
    assert text == language_model.tokenizer.decode(ids[3:], skip_special_tokens=True)


def test_the_pieces_shown_are_the_continuation(language_model):
    pieces = []
    text = generate(language_model, "ab", GenerateConfig(max_new_tokens=12), show=pieces.append)
    assert "".join(pieces) == text


def test_a_prompt_beyond_the_positions_is_refused(language_model):
    language_model.model.config.max_position_embeddings = 16
    with pytest.raises(PerplabError, match="exceed the model's 16 positions"):
        generate(language_model, "abcdefgh", GenerateConfig(max_new_tokens=10))


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_that_cannot_be_meant_are_refused(bad):
    with pytest.raises(PerplabError, match=next(iter(bad))):
        GenerateConfig(**bad)
