"""Scaled inputs leave a model's function as it is."""

import pytest
import torch

from perplab.compression.absorb import scalable_inputs
from perplab.models.anatomy import anatomy
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.training import new_decoder


def assert_scaling_changes_no_logit(model):
    input_ids = torch.randint(3, 90, (2, 9))
    parts = anatomy(model)
    with torch.no_grad():
        before = model(input_ids).logits
        for block in parts.blocks:
            for scalable in scalable_inputs(block, parts, model.config):
                scale = torch.rand(scalable.layers[0].matrix.shape[1]) * 3 + 0.3
                for layer in scalable.layers:
                    layer.matrix.mul_(scale)
                scalable.divide(scale)
        after = model(input_ids).logits
    assert torch.allclose(before, after, atol=2e-5)


def test_scaling_every_input_changes_no_logit(family, tiny_model):
    assert_scaling_changes_no_logit(tiny_model(family).eval())


@pytest.mark.parametrize("mixer", TOKEN_MIXERS)
def test_scaling_every_input_changes_no_logit_whatever_the_mixer(mixer):
    shape = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = new_decoder(DecoderConfig(**shape, num_hidden_layers=2, token_mixers=[mixer] * 2), seed=0).eval()
    assert_scaling_changes_no_logit(model)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [{"query", "key", "value"}, {"gate", "up"}, {"down"}]),
        ("perplab_decoder", [{"query", "key", "value"}, {"gate", "up"}, {"down"}]),
        ("opt", [{"query", "key", "value"}, {"up"}, {"attention_output"}, {"down"}]),
        ("gpt2", [{"qkv"}, {"up"}, {"attention_output"}]),
        ("cohere", [{"query", "key", "value", "gate", "up"}, {"down"}]),
        ("olmo2", [{"down"}]),
        ("mixtral", [{"query", "key", "value"}]),
        ("falcon-many-keys", [{"qkv", "up"}, {"attention_output"}]),
    ],
)
def test_what_can_be_scaled(family, expected, tiny_model):
    model = tiny_model(family)
    parts = anatomy(model)
    found = scalable_inputs(parts.blocks[0], parts, model.config)
    assert [{layer.role for layer in scalable.layers} for scalable in found] == expected
