import pytest
import torch

from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixers.context import SequenceContext
from perplab.models.mixers.lstm import LSTM

SHAPE = {"vocab_size": 20, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    return LSTM(DecoderConfig(**SHAPE, token_mixers=["lstm"] * 2), 0)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    model = DecoderForCausalLM(DecoderConfig(**SHAPE, token_mixers=["lstm"] * 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def context(positions, *, packed=True, real=None):
    return SequenceContext(torch.as_tensor(positions), None, packed, None, real, None, None)


def by_hand(mixer, states):
    """The equations of one LSTM, step by step: (length, width) to the same."""
    lstm = mixer.lstm
    hidden = cell = torch.zeros(states.shape[1])
    outputs = []
    for state in states:
        gates = lstm.weight_ih_l0 @ state + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden + lstm.bias_hh_l0
        enter, forget, candidate, leave = gates.chunk(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(mixer.o_proj(hidden))
    return torch.stack(outputs)


def test_each_document_of_packed_rows_is_read_from_a_zero_state(mixer):
    states = torch.randn(2, 9, 12)
    mixed = mixer(states, context([[0, 1, 2, 3, 0, 1, 0, 1, 2], [3, 4, 5, 6, 7, 8, 9, 0, 0]]))
    for row, start, end in ((0, 0, 4), (0, 4, 6), (0, 6, 9), (1, 0, 7), (1, 7, 8), (1, 8, 9)):
        assert torch.allclose(mixed[row, start:end], by_hand(mixer, states[row, start:end]), atol=1e-6)


def test_padding_on_either_side_is_passed_over(mixer):
    states = torch.randn(3, 8, 12)
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1, 0, 0]]).bool()
    mixed = mixer(states, context(torch.arange(8).expand(3, 8), packed=False, real=real))
    for row in range(3):
        assert torch.allclose(mixed[row, real[row]], by_hand(mixer, states[row, real[row]]), atol=1e-6)
        assert not mixed[row, ~real[row]].any()


def test_a_row_of_nothing_but_padding_is_no_error(mixer):
    real = torch.tensor([[True, True], [False, False]])
    assert not mixer(torch.randn(2, 2, 12), context(torch.arange(2).expand(2, 2), packed=False, real=real))[1].any()


@torch.no_grad()
def test_pieces_after_left_padding_are_the_whole(decoder):
    ids = torch.randint(0, 20, (3, 10))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, :1] = 0
    first = decoder(ids[:, :7], attention_mask=mask[:, :7], use_cache=True)
    second = decoder(ids[:, 7:], attention_mask=mask, past_key_values=first.past_key_values)
    assert torch.allclose(second.logits[0], decoder(ids[:1, 4:]).logits[0, 3:], atol=1e-6)
    assert torch.allclose(second.logits[2], decoder(ids[2:]).logits[0, 7:], atol=1e-6)


def test_autocast_leaves_the_recurrence_in_float32(mixer):
    states = torch.randn(1, 6, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mixer._recur(states.bfloat16(), context(torch.arange(6)[None]))
    assert torch.equal(mixed, mixer._recur(states.bfloat16().float(), context(torch.arange(6)[None])).bfloat16())
