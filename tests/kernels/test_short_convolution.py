import pytest
import torch
import torch.nn.functional as F

from perplab.kernels.short_convolution import last_inputs, short_convolution, short_convolution_reference


def inputs(length=23, width=4):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, length, 6), (6, width), (2, width - 1, 6))
    ]


@pytest.mark.parametrize("width", [2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 23])
@pytest.mark.parametrize("packed", [False, True])
def test_shifted_sums_give_the_reference_and_its_gradients(width, length, packed):
    leaves = [states.requires_grad_() for states in inputs(length, width)]
    states, weight, before = leaves
    first = torch.arange(23).remainder(5)[:length]
    position_ids = torch.stack([first, torch.arange(length)]) if packed else None
    # Packed rows begin with a document, so nothing stands in front of them.
    options = {"position_ids": position_ids, "before": None if packed else before}
    wanted = leaves[:2] if packed else leaves
    found, expected = (
        function(states, weight, **options) for function in (short_convolution, short_convolution_reference)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), wanted), torch.autograd.grad(expected.square().sum(), wanted)
    )


def test_it_is_a_grouped_convolution_of_torch():
    states, weight, _ = inputs()
    expected = F.conv1d(F.pad(states.mT, (3, 0)), weight[:, None], groups=6).mT
    torch.testing.assert_close(short_convolution(states, weight), expected)


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
def test_two_pieces_with_the_last_inputs_carried_are_one_pass(cut):
    states, weight, _ = inputs()
    carried = last_inputs(states[:, :cut], 4)
    pieces = short_convolution(states[:, :cut], weight), short_convolution(states[:, cut:], weight, before=carried)
    torch.testing.assert_close(torch.cat(pieces, dim=1), short_convolution(states, weight))


def test_last_inputs_are_those_that_count():
    states, _, before = inputs(length=5)
    found = last_inputs(states, 4, before=before, count=torch.tensor([1, 4]))
    torch.testing.assert_close(found[0], torch.cat((before[0, 1:], states[0, :1])))
    torch.testing.assert_close(found[1], states[1, 1:4])
