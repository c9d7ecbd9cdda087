"""Calibration windows and what layers read of them."""

import pytest
import torch

from perplab.compression.calibration import calibration_windows
from perplab.compression.layers import InputWatch, block_layers
from perplab.errors import PerplabError
from perplab.models.blocks import BlockRunner
from perplab.text import Document

TEXT = [Document("the quick brown fox jumps over the lazy dog " * 20, "", str(number)) for number in range(6)]


def test_windows_are_pieces_of_the_text_that_do_not_overlap(tiny_tokenizer):
    found = calibration_windows(TEXT, tiny_tokenizer, windows=10, length=16, seed=0)
    everything = calibration_windows(TEXT, tiny_tokenizer, windows=10**6, length=16, seed=0)
    assert found.shape == (10, 16)
    assert everything[0, 0] == tiny_tokenizer.eos_token_id
    rows = {tuple(row) for row in everything.tolist()}
    assert all(tuple(row) in rows for row in found.tolist())


def test_a_seed_draws_the_same_windows_and_another_seed_others(tiny_tokenizer):
    first, same, other = (
        calibration_windows(TEXT, tiny_tokenizer, windows=8, length=8, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "is empty"),
        ([Document("short", "", "a")], "less than one window"),
        ([Document("a" * 500, "", "a")], "repeats one token"),
    ],
)
def test_text_that_cannot_calibrate_is_refused(documents, message, tiny_tokenizer):
    with pytest.raises(PerplabError, match=message):
        calibration_windows(documents, tiny_tokenizer, windows=4, length=64, seed=0)


def test_moments_are_those_of_what_layers_read(family, tiny_model):
    model = tiny_model(family).eval()
    runner = BlockRunner(model)
    layers = [layer for layer in block_layers(runner.anatomy.blocks[0]) if layer.expert is None]
    inputs = [runner.enter(torch.randint(3, 90, (2, 9))) for _ in range(3)]
    read = {layer.path: [] for layer in layers}
    for layer in layers:
        layer.projection.module.register_forward_pre_hook(
            lambda _, arguments, path=layer.path: read[path].append(arguments[0].flatten(0, -2))
        )
    watch = InputWatch(layers)
    with torch.no_grad(), watch.watching():
        for hidden_states in inputs:
            runner.run(0, hidden_states)
    for layer in layers:
        inputs_of_layer = torch.cat(read[layer.path]).double()
        moments = watch.take(layer)
        assert moments.count == len(inputs_of_layer) == 54
        assert torch.allclose(moments.second, inputs_of_layer.T @ inputs_of_layer, rtol=1e-4, atol=1e-4)
        assert torch.allclose(moments.mean_magnitude, inputs_of_layer.abs().mean(0), rtol=1e-4, atol=1e-6)


def test_experts_see_the_tokens_routed_to_them(tiny_model):
    model = tiny_model("mixtral").eval()
    runner = BlockRunner(model)
    block = runner.anatomy.blocks[0]
    layers = [layer for layer in block_layers(block) if layer.expert is not None]
    experts = layers[0].projection.module
    hidden_states = runner.enter(torch.randint(3, 90, (2, 9)))
    seen = []
    experts.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    watch = InputWatch(layers)
    with torch.no_grad(), watch.watching():
        runner.run(0, hidden_states)
    tokens, chosen, _ = seen[0]
    counts = torch.zeros(3)
    for experts_of_token in chosen:
        counts[experts_of_token] += 1
    for layer in layers:
        moments = watch.take(layer)
        rows = torch.stack([t for t, e in zip(tokens, chosen, strict=True) if layer.expert in e])
        if layer.role == "down":
            gate, up = (rows @ experts.gate_up_proj[layer.expert].T).chunk(2, dim=1)
            rows = torch.nn.functional.silu(gate) * up
        assert moments.count == counts[layer.expert] == len(rows)
        assert torch.allclose(moments.second.float(), rows.T @ rows, rtol=1e-4, atol=1e-5)
