"""The network of masked diffusion, the networks that are none, and the baselines that know the time."""

import inspect
import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, RobertaConfig

from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.models.diffusion import (
    AbsorbingDiffusion,
    DiffusionConfig,
    DiffusionModel,
    SamplingConfig,
    ao_bound,
    order_nll,
    sample,
)
from perplab.models.diffusion.conditioned import ConditionedNetwork, ScoreDiffusion
from perplab.models.diffusion.losses import FIRST_TIME, Noise, ao, dse, lambda_dce, noise, t_dce, token_costs, uniforms

VOCABULARY = 11
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MASKED_LANGUAGE_MODELS = {
    "bert": BertConfig(**SHAPE, intermediate_size=48),
    "roberta": RobertaConfig(**SHAPE, intermediate_size=48, pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "modernbert": ModernBertConfig(
        **SHAPE,
        intermediate_size=48,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=2,
        sep_token_id=3,
    ),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def new_network(head=True, dtype=torch.float64, **changes):
    """A random network; its head too, unless it is to stay at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffusionModel(DiffusionConfig(**(SHAPE | changes))).to(dtype).eval()
        if head:
            torch.nn.init.normal_(model.lm_head.weight)
    return model


def text(batch, length, seed=0):
    return torch.randint(VOCABULARY, (batch, length), generator=generator(seed))


def test_an_untrained_network_costs_log_v_a_token_by_every_loss():
    diffusion = AbsorbingDiffusion(new_network(head=False))
    ids, expected = text(4096, 6), 6 * math.log(VOCABULARY)
    exact = ao(diffusion, ids, None, generator())
    torch.testing.assert_close(exact, torch.full_like(exact, expected), rtol=1e-12, atol=0)
    for loss in (lambda_dce, t_dce, dse):
        with torch.no_grad():
            drawn = loss(diffusion, ids, None, generator(), sampler="stratified")
        assert float(drawn.mean()) == pytest.approx(expected, abs=4 * float(drawn.std()) / math.sqrt(len(drawn)))
    assert ao_bound(diffusion, ids[:3], 4, generator()).perplexity == pytest.approx(VOCABULARY)


def test_no_signature_has_a_time():
    for function in (DiffusionModel.forward, AbsorbingDiffusion.log_probabilities):
        assert not {"t", "time", "timestep", "sigma", "noise_level"} & set(inspect.signature(function).parameters)


def test_attention_is_bidirectional_and_positions_matter():
    model, ids = new_network(), text(1, 8)
    with torch.no_grad():
        logits, changed = model(ids).logits, model(torch.cat((ids[:, :-1], (ids[:, -1:] + 1) % VOCABULARY), 1)).logits
        assert (logits != changed).any(-1).all()
        assert not torch.allclose(model(ids.flip(1)).logits.flip(1), logits)


def test_documents_of_a_packed_row_do_not_see_each_other_and_nothing_sees_padding():
    model, ids = new_network(), text(2, 9)
    with torch.no_grad():
        alone = [model(ids[:, :4]).logits, model(ids[:, 4:7]).logits]
        packed = model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]]).repeat(2, 1)).logits
        padding = torch.tensor([[1] * 4 + [0] * 5, [1] * 7 + [0] * 2])
        padded = model(ids, attention_mask=padding).logits
        seven = model(ids[1:, :7]).logits
    torch.testing.assert_close(packed[:, :4], alone[0])
    torch.testing.assert_close(packed[:, 4:7], alone[1])
    torch.testing.assert_close(padded[0, :4], alone[0][0])
    torch.testing.assert_close(padded[1, :7], seven[0])


def test_a_padded_row_has_the_bound_of_the_row_alone():
    diffusion, ids = AbsorbingDiffusion(new_network()), text(1, 6)
    padding = torch.tensor([[1] * 6 + [0] * 3])
    padded = ao_bound(
        diffusion, torch.cat((ids, text(1, 3, 1)), 1), 4000, generator(), attention_mask=padding, stratified=True
    )
    alone = ao_bound(diffusion, ids, 4000, generator(1))
    assert (padded.token_nats[:, 6:] == 0).all()
    error = math.hypot(padded.standard_error, alone.standard_error)
    assert padded.nats_per_token == pytest.approx(alone.nats_per_token, abs=4 * error)


def test_logits_at_some_positions_are_those_of_all():
    model, ids = new_network(), text(3, 7)
    predicted = torch.rand(3, 7, generator=generator()) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(model(ids, predicted=predicted).logits, model(ids).logits[predicted])


def test_a_saved_network_is_loaded_as_it_was(tmp_path, tiny_tokenizer):
    model = new_network(vocab_size=len(tiny_tokenizer))
    LanguageModel(model, tiny_tokenizer).save(tmp_path / "first")
    loaded = load(tmp_path / "first")
    assert isinstance(loaded.model, DiffusionModel)
    loaded.save(tmp_path / "second")
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(text(1, 5)).logits, model(text(1, 5)).logits)


def test_dropout_of_training_is_not_there_in_evaluation():
    model, ids = new_network(dropout=0.5), text(1, 6)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert not torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("family", MASKED_LANGUAGE_MODELS)
def test_masked_language_models_are_diffusion_models_as_they_stand(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(MASKED_LANGUAGE_MODELS[family], dtype=torch.float32).eval()
    diffusion = AbsorbingDiffusion(model, 4)
    ids = torch.randint(5, VOCABULARY, (2, 6), generator=generator())
    bound = ao_bound(diffusion, ids, 400, generator())
    orders = torch.stack([torch.randperm(6, generator=generator(seed)) for seed in range(150)])
    costs = torch.stack([order_nll(diffusion, ids, order) for order in orders]).mean(-1) / 6
    error = math.hypot(bound.standard_error, float(costs.std()) / math.sqrt(len(costs)))
    assert bound.nats_per_token == pytest.approx(float(costs.mean()), abs=4 * error + 1e-4)
    drawn = sample(diffusion, torch.full((2, 6), 4), SamplingConfig(steps=4), generator())
    assert not (drawn.ids == 4).any()


def test_a_network_that_cannot_be_one_is_refused():
    with pytest.raises(PerplabError, match="attention is causal"):
        AbsorbingDiffusion(AutoModelForMaskedLM.from_config(BertConfig(**SHAPE, is_decoder=True)), 4)
    with pytest.raises(PerplabError, match="no row in the input table of 11"):
        AbsorbingDiffusion(AutoModelForMaskedLM.from_config(MASKED_LANGUAGE_MODELS["bert"]), VOCABULARY)
    with pytest.raises(PerplabError, match="is the pad token"):
        AbsorbingDiffusion(AutoModelForMaskedLM.from_config(MASKED_LANGUAGE_MODELS["roberta"]), 1)
    with pytest.raises(PerplabError, match="is a token of the vocabulary"):
        AbsorbingDiffusion(new_network(), 5)
    with pytest.raises(PerplabError, match="names no mask token"):
        AbsorbingDiffusion(AutoModelForMaskedLM.from_config(MASKED_LANGUAGE_MODELS["bert"]))
    with pytest.raises(PerplabError, match="does not divide into 5 heads"):
        DiffusionConfig(**(SHAPE | {"num_attention_heads": 5}))


def test_a_causal_decoder_is_refused(tiny_model):
    with pytest.raises(PerplabError, match="attention is causal"):
        AbsorbingDiffusion(tiny_model("llama"), 100)


def trained_conditioned():
    """A network with random weights everywhere, the modulation by time among them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConditionedNetwork(DiffusionConfig(**SHAPE)).double().eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def test_scaled_scores_begin_at_the_uniform_bound_and_depend_on_time():
    diffusion = ScoreDiffusion(ConditionedNetwork(DiffusionConfig(**SHAPE)).eval(), VOCABULARY)
    ids = text(4096, 6)
    with torch.no_grad():
        drawn = diffusion.loss(ids, generator())
    expected = 6 * math.log(VOCABULARY)
    assert float(drawn.mean()) == pytest.approx(expected, abs=4 * float(drawn.std()) / math.sqrt(len(drawn)))
    trained = ScoreDiffusion(trained_conditioned(), VOCABULARY)
    hidden = torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        early, late = (trained.network(ids[:1], torch.tensor([t], dtype=torch.float64))[hidden] for t in (0.1, 3.0))
    assert not torch.allclose(early, late)


def test_normalised_scores_cost_at_most_their_score_entropy():
    diffusion, ids = ScoreDiffusion(trained_conditioned(), VOCABULARY), text(64, 6)
    scored = torch.ones_like(ids, dtype=torch.bool)
    exactly = noise("ao", uniforms(64, "iid", generator()), scored, diffusion.schedule, generator(1))
    drawn = Noise(exactly.hidden, diffusion.schedule.lambda_to_t(exactly.amount).clamp(FIRST_TIME, 1.0))
    with torch.no_grad():
        entropy = diffusion.costs(ids, drawn)
        normalised = token_costs(diffusion.conditionals(), ids, "t-dce", drawn)
    assert (entropy >= normalised - 1e-9).all()
    assert float((entropy - normalised).max()) > 0.01


def test_score_diffusion_fills_in_what_is_hidden_and_that_alone():
    diffusion = ScoreDiffusion(trained_conditioned(), VOCABULARY)
    ids = text(5, 8)
    hidden = torch.rand(5, 8, generator=generator(3)) < 0.6
    filled = diffusion.sample(ids.masked_fill(hidden, VOCABULARY), 10, generator())
    assert (filled < VOCABULARY).all()
    assert torch.equal(filled[~hidden], ids[~hidden])


def test_score_diffusion_with_exact_scores_draws_the_law():
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)

    def network(ids, total):
        return (law * 3).log().expand(*ids.shape, 3)  # with the scale taken out, what is left is p over uniform

    drawn = ScoreDiffusion(network, 3).sample(torch.full((20_000, 1), 3), 50, generator())
    found = torch.bincount(drawn[:, 0], minlength=3) / len(drawn)
    torch.testing.assert_close(found.double(), law, rtol=0, atol=0.015)


def test_the_noise_input_at_zero_leaves_a_network_of_ids_alone():
    network = trained_conditioned()
    diffusion = AbsorbingDiffusion(network.at_zero(), VOCABULARY)
    ids = text(8, 6)
    found = [
        sample(diffusion, torch.full((8, 6), VOCABULARY), SamplingConfig(steps=9, cache=cache), generator()).ids
        for cache in ("batch", "none")
    ]
    assert torch.equal(*found)
    with torch.no_grad():
        assert (lambda_dce(diffusion, ids, None, generator()) >= 0).all()
