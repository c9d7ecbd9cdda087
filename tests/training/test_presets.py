import pytest
import torch

from perplab.errors import PerplabError
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.stock import to_stock
from perplab.training import TrainConfig, new_decoder
from perplab.training.presets import decoder_config, peak_learning_rate, vocabulary_size


def shape(**settings):
    config = TrainConfig(**settings)
    return decoder_config(config, vocabulary_size(config), 0)


def parameters(**settings):
    with torch.device("meta"):
        return DecoderForCausalLM(shape(**settings)).num_parameters()


@pytest.mark.parametrize(("depth", "millions"), [(1, 0.3), (4, 5), (14, 160)])
def test_dial_gives_the_sizes_it_promises(depth, millions):
    assert parameters(depth=depth) == pytest.approx(millions * 1e6, rel=0.15)


def test_every_turn_of_the_dial_is_larger_than_the_last():
    sizes = [parameters(depth=depth) for depth in range(1, 15)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("depth", range(1, 15))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_every_preset_has_a_stock_form(depth, qk_norm):
    with torch.device("meta"):
        stock = to_stock(DecoderForCausalLM(shape(depth=depth, qk_norm=qk_norm)))
    assert stock.config.model_type == ("qwen3" if qk_norm else "llama")
    assert stock.config.head_dim == 64
    assert stock.num_parameters() == parameters(depth=depth, qk_norm=qk_norm)


def test_settings_take_the_place_of_the_dial():
    config = shape(
        depth=2, hidden_size=256, num_hidden_layers=3, num_key_value_heads=2, intermediate_size=100, vocab_size=999
    )
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (256, 3, 2)
    assert (config.intermediate_size, config.vocab_size, config.num_attention_heads) == (100, 999, 4)


def test_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(PerplabError, match="hidden_size 200 does not divide over 3 attention heads"):
        shape(hidden_size=200)


def test_learning_rate_falls_with_the_square_root_of_the_width_and_can_be_given():
    assert peak_learning_rate(TrainConfig(), 1024) == pytest.approx(peak_learning_rate(TrainConfig(), 256) / 2)
    assert peak_learning_rate(TrainConfig(learning_rate=0.0), 1024) == 0.0


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_generator_where_it_was():
    small = shape(depth=1, vocab_size=300)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = new_decoder(small, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(new_decoder(small, seed=3).state_dict(), first, rtol=0, atol=0)
    assert not torch.equal(new_decoder(small, seed=4).model.embed_tokens.weight, first["model.embed_tokens.weight"])


def test_projections_into_the_residual_stream_start_smaller_by_the_root_of_their_number():
    model = new_decoder(shape(depth=4, vocab_size=300), seed=0)
    for layer in model.model.layers:
        pairs = (layer.self_attn.o_proj, layer.self_attn.q_proj), (layer.mlp.down_proj, layer.mlp.up_proj)
        for outwards, inwards in pairs:
            assert (outwards.weight.std() / inwards.weight.std()).item() == pytest.approx(8**-0.5, rel=0.05)
