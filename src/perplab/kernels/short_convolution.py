"""A causal convolution over the last few tokens, each channel for itself, that does not look across documents.

Decisions:
- It is a sum of shifted, weighted copies: for four taps that is fewer passes over memory than a convolution routine's
  rearrangements, it is differentiated by autograd, and `torch.compile` makes one loop of it.
- `before` holds the inputs in front of the first, zeros where there are none, so a sequence can be read in pieces.
- What stays for the next piece are the last inputs that count, for each row its own number of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def short_convolution_reference(
    states: Tensor, weight: Tensor, *, before: Tensor | None = None, position_ids: Tensor | None = None
) -> Tensor:
    """Token by token: the definition that `short_convolution` is held to.

    Args:
        states: (batch, length, channels).
        weight: (channels, width); the last tap is the token's own.
        before: (batch, width - 1, channels) inputs in front of the first; None for zeros.
        position_ids: (batch, length); 0 opens a document. None: one document a row.

    Returns:
        (batch, length, channels).
    """
    width = weight.shape[1]
    before = states.new_zeros(len(states), width - 1, states.shape[2]) if before is None else before
    everything = torch.cat((before, states), dim=1)
    outputs = []
    for token in range(states.shape[1]):
        total = torch.zeros_like(states[:, 0])
        is_open = torch.ones(len(states), 1, dtype=torch.bool, device=states.device)
        for back in range(width):
            total = total + everything[:, width - 1 + token - back] * weight[:, width - 1 - back] * is_open
            if position_ids is not None and token >= back:
                is_open = is_open & (position_ids[:, token - back, None] != 0)
        outputs.append(total)
    return torch.stack(outputs, dim=1)


def short_convolution(
    states: Tensor, weight: Tensor, *, before: Tensor | None = None, position_ids: Tensor | None = None
) -> Tensor:
    """A causal convolution of each channel; arguments as for the reference.

    Where documents are packed, positions have to count up from the 0 that opens each.
    """
    width, length = weight.shape[1], states.shape[1]
    everything = F.pad(states, (0, 0, width - 1, 0)) if before is None else torch.cat((before, states), dim=1)
    taps = weight.to(states.dtype).unbind(dim=1)
    total = states * taps[-1]
    for back in range(1, width):
        shifted = everything[:, width - 1 - back :][:, :length] * taps[-1 - back]
        if position_ids is not None:
            shifted = shifted * (position_ids >= back)[..., None]
        total = total + shifted
    return total


def last_inputs(states: Tensor, width: int, *, before: Tensor | None = None, count: Tensor | None = None) -> Tensor:
    """What the next piece of a sequence has in front of it.

    Args:
        states: (batch, length, channels), of which the first `count` of a row are tokens.
        width: of the convolution.
        before: (batch, width - 1, channels) inputs in front of the first; None for zeros.
        count: (batch,); None for all.

    Returns:
        (batch, width - 1, channels).
    """
    everything = F.pad(states, (0, 0, width - 1, 0)) if before is None else torch.cat((before, states), dim=1)
    if count is None:
        return everything[:, states.shape[1] :].clone()
    places = count[:, None] + torch.arange(width - 1, device=states.device)
    return everything.gather(1, places[..., None].expand(-1, -1, states.shape[2]))
