"""The loss of other families' models: packed rows cost what their documents cost one by one."""

import pytest
import torch
import torch.nn.functional as F

from perplab.kernels import softmax_gradient
from perplab.training.objective import NextToken

WITHOUT_POSITIONS = ("bloom", "falcon-sequential")
"""Families whose attention knows of distances alone: their rows are one stream."""


def costs(model, input_ids, position_ids, labels, z_loss=0.0):
    return NextToken().costs(
        model, input_ids, position_ids, labels, step=0, micro_batch=0, z_loss=z_loss, chunk_step=softmax_gradient
    )


@pytest.fixture
def rows():
    """Two documents of 5 and 7 tokens packed into a row, and each alone."""
    torch.manual_seed(0)
    tokens = torch.randint(1, 100, (1, 13))
    first, second = (tokens[:, :5], tokens[:, 1:6]), (tokens[:, 5:12], tokens[:, 6:13])
    packed = (
        torch.cat((first[0], second[0]), 1),
        torch.cat((torch.arange(5), torch.arange(7)))[None],
        torch.cat((first[1], second[1]), 1),
    )
    return packed, (first[0], torch.arange(5)[None], first[1]), (second[0], torch.arange(7)[None], second[1])


def test_documents_of_a_row_cost_what_they_cost_alone(family, tiny_model, rows):
    model = tiny_model(family)
    packed, first, second = (costs(model, *row).nll for row in rows)
    apart = torch.cat((first, second))
    if family in WITHOUT_POSITIONS:
        torch.testing.assert_close(packed[:5], first, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(packed, apart, atol=1e-3)
    else:
        torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-4)


def test_loss_and_gradient_are_those_of_the_models_own_logits(family, tiny_model, rows):
    input_ids, position_ids, labels = rows[2]
    labels = labels.clone()
    labels[0, 3] = -100
    model = tiny_model(family)
    found = costs(model, input_ids, position_ids, labels)
    found.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model = tiny_model(family)
    logits = model(input_ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-5)
    assert float(found.nll[3]) == 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
