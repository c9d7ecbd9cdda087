"""Scaled inputs leave a model's function as it is."""

import pytest
import torch

from perplab.compression.absorb import scalable_inputs
from perplab.models.anatomy import anatomy


def test_scaling_every_input_changes_no_logit(family, tiny_model):
    model = tiny_model(family).eval()
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
