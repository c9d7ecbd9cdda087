"""Blocks run one at a time do what the model does."""

import pytest
import torch

from perplab.models.blocks import BlockRunner


def test_blocks_one_after_the_other_are_the_model(family, tiny_model):
    model = tiny_model(family).eval()
    runner = BlockRunner(model)
    for shape in ((2, 11), (1, 7)):
        input_ids = torch.randint(3, 90, shape)
        with torch.no_grad():
            stream = runner.run_all(runner.enter(input_ids), range(len(runner)))
            logits = runner.anatomy.logits(runner.anatomy.last_hidden_state(stream))
            expected = model(input_ids=input_ids, use_cache=False).logits
        assert torch.allclose(logits, expected, atol=1e-5)


def test_gradients_reach_the_input_and_the_block(tiny_model):
    runner = BlockRunner(tiny_model("llama").eval())
    hidden_states = runner.enter(torch.randint(3, 90, (2, 5))).requires_grad_()
    runner.run(1, hidden_states).sum().backward()
    assert hidden_states.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in runner.blocks[1].parameters())
    assert all(parameter.grad is None for parameter in runner.blocks[0].parameters())


def test_a_shape_that_did_not_enter_is_unknown(tiny_model):
    runner = BlockRunner(tiny_model("llama").eval())
    hidden_states = runner.enter(torch.randint(3, 90, (2, 5)))
    with pytest.raises(KeyError):
        runner.run(0, hidden_states[:1])
