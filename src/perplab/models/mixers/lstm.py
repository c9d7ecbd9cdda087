"""A long short-term memory as token mixer (Hochreiter & Schmidhuber 1997).

- Documents and padded rows become sequences of their own, which start from a zero state, so packed rows cost what their
  longest document costs and nothing is computed for padding.
- Weights are drawn as transformers draws an LSTM's: Xavier-uniform matrices, biases of zero.
- The recurrence is torch's own and opaque to `torch.compile`. It runs in the dtype of its weights, also under autocast:
  a state that is rounded at every step drifts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.token_mixer import CacheLayer, TokenMixer

if TYPE_CHECKING:
    from perplab.models.decoder_config import DecoderConfig


class LSTM(TokenMixer):
    """One layer of LSTM of the decoder's width, and an output projection."""

    cache_layer: ClassVar[CacheLayer] = "state"
    projections: ClassVar[Mapping[str, str]] = {"attention_output": "o_proj"}

    def __init__(self, config: "DecoderConfig", layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """Mix positions: (batch, length, hidden_size) to the same shape; zeros for padding."""
        return self.o_proj(self._recur(hidden_states, context))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _recur(self, hidden_states: Tensor, context: SequenceContext) -> Tensor:
        """The hidden state of the recurrence at every token."""
        tokens = hidden_states.flatten(0, 1).to(next(self.lstm.parameters()).dtype)
        sequences = _sequences(context)
        lengths = (sequences < len(tokens)).sum(dim=1).clamp(min=1).cpu()
        inputs = F.pad(tokens, (0, 0, 0, 1))[sequences]
        state = context.state(self.layer_index)
        start = None
        if state is not None and state.tensors:
            start = state.tensors["hidden"][None], state.tensors["cell"][None]
        with torch.autocast(tokens.device.type, enabled=False):
            packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
            outputs, (hidden, cell) = self.lstm(packed, start)
        if state is not None:
            state.tensors = {"hidden": hidden[0], "cell": cell[0]}
            state.advance(hidden_states.shape[1])
        unpacked, _ = pad_packed_sequence(outputs, batch_first=True)
        mixed = F.pad(torch.zeros_like(tokens), (0, 0, 0, 1)).index_put((sequences,), unpacked)[:-1]
        return mixed.view_as(hidden_states).to(hidden_states.dtype)


def _sequences(context: SequenceContext) -> Tensor:
    """The documents of packed rows, or the text of other rows, one a line.

    Returns:
        (sequences, longest) places of tokens in the flattened batch; behind the end of a sequence, the number of
        tokens in the batch.
    """
    opens = torch.zeros_like(context.position_ids, dtype=torch.bool)
    opens[:, 0] = True
    if context.packed:
        opens |= context.position_ids == 0
    places = torch.arange(opens.numel(), device=opens.device)
    sequence = opens.flatten().cumsum(dim=0) - 1
    count = int(sequence[-1]) + 1
    if context.real is not None:
        kept = context.real.flatten()
        places, sequence = places[kept], sequence[kept]
    lengths = torch.bincount(sequence, minlength=count)
    first = lengths.cumsum(dim=0) - lengths
    sequences = places.new_full((count, max(1, int(lengths.max()))), opens.numel())
    sequences[sequence, torch.arange(len(sequence), device=opens.device) - first[sequence]] = places
    return sequences
