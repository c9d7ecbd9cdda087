import itertools
import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.kernels.quantized_matrix import QuantizedMatrix
from perplab.models.anatomy import anatomy, linear_layers
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixers.registry import TOKEN_MIXERS
from perplab.models.packed_linear import PackedLinear
from perplab.training import TrainConfig
from perplab.training.low_rank import LowRankConfig, apply_low_rank, merge_low_rank
from perplab.training.low_rank.layer import ReparameterisedLinear
from perplab.training.low_rank.method import Cycle
from perplab.training.optimizer import new_optimizer, trained_parameters

METHODS = ["lora", "relora", "galore", "sst"]


def config(method, **settings):
    return LowRankConfig(**({"method": method, "rank": 3, "iteration_steps": 4, "iteration_warmup": 2} | settings))


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 12, bias=False)).to(dtype)


def gradients(model, seed):
    inputs = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()


def steps_of(model, training, optimizer, count, first=0):
    for step in range(first, first + count):
        gradients(model, step)
        training.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_update(step, optimizer)


def logits(model):
    return model(torch.arange(24).view(2, 12) % 97).logits


@pytest.mark.parametrize("method", METHODS)
def test_any_family_computes_the_same_under_a_method_and_comes_back_as_it_was(method, family, tiny_model):
    model = tiny_model(family)
    before, names, modules = logits(model), {*model.state_dict()}, {p: type(m) for p, m in model.named_modules()}
    paths = {*linear_layers(model)}
    training = apply_low_rank(model, config(method))
    assert {p for p, m in model.named_modules() if isinstance(m, ReparameterisedLinear)} == paths != set()
    assert len(training.layers) == len(paths)
    assert not linear_layers(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-4)
    merge_low_rank(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-4)
    assert {*model.state_dict()} == names
    assert {p: type(m) for p, m in model.named_modules()} == modules
    assert anatomy(model).head is not None


def test_any_family_learns_under_a_method_and_its_checkpoint_computes_what_was_trained(family, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model(family)
    training = apply_low_rank(model, config("sst", iteration_steps=3))
    optimizer = new_optimizer(model, TrainConfig())
    tokens = torch.arange(40).view(2, 20) % 7
    losses = []
    for step in range(7):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        training.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_update(step, optimizer)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(model)
    merge_low_rank(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=5e-4)


@pytest.mark.parametrize("mixer", TOKEN_MIXERS)
def test_every_mixer_and_the_ngram_heads_learn_under_a_method(mixer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = DecoderForCausalLM(DecoderConfig(vocab_size=50, token_mixers=[mixer], ngram_heads=[[1, 2]], **shape))
    ids, positions = torch.randint(0, 50, (2, 21)), torch.arange(20).expand(2, -1)
    before = model(ids).logits
    training = apply_low_rank(model, config("sst"))
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-4)
    optimizer = new_optimizer(model, TrainConfig())
    losses = []
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        loss = model.token_losses(ids[:, :-1], positions, ids[:, 1:]).loss
        loss.backward()
        assert all(parameter.grad is not None for layer in training.layers for parameter in layer.parameters())
        training.before_update(step)
        optimizer.step()
        optimizer.zero_grad()
        training.after_update(step, optimizer)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_and_head_stay_tied_and_dense(method, tiny_model):
    model = tiny_model("gpt2")
    apply_low_rank(model, config(method))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert isinstance(model.lm_head, nn.Linear)


@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_that_ends_leaves_what_the_model_computes(method):
    model = network()
    training = apply_low_rank(model, config(method))
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "dense" not in n], lr=0.01)
    steps_of(model, training, optimizer, 3)
    gradients(model, 3)
    training.before_update(3)
    optimizer.step()
    for layer in training.layers:
        layer.after_update()
    inputs = torch.randn(5, 10, dtype=torch.float64)
    before = model(inputs)
    training.after_update(3, optimizer)  # after_update of a layer twice changes nothing
    torch.testing.assert_close(model(inputs), before, rtol=0, atol=1e-12)


def moments(optimizer, parameter):
    return [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]


def test_relora_merges_begins_anew_and_its_first_step_moves_one_factor_alone():
    model = network()
    training = apply_low_rank(model, config("relora"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    base = [layer.base.clone() for layer in training.layers]
    steps_of(model, training, optimizer, 3)
    assert all(torch.equal(layer.base, frozen) for layer, frozen in zip(training.layers, base, strict=True))
    steps_of(model, training, optimizer, 1, first=3)
    gradients(model, 4)
    for layer, frozen in zip(training.layers, base, strict=True):
        assert not torch.equal(layer.base, frozen)
        assert (layer.down.grad == 0).all()
        assert (layer.up.grad != 0).any()
        assert all((value == 0).all() for factor in (layer.down, layer.up) for value in moments(optimizer, factor))
    bias = training.layers[0].bias
    assert all((value != 0).any() for value in moments(optimizer, bias))


def test_lora_never_merges():
    model = network()
    training = apply_low_rank(model, config("lora", iteration_steps=1))
    base = training.layers[0].base.clone()
    steps_of(model, training, torch.optim.Adam(model.parameters()), 20)
    assert torch.equal(training.layers[0].base, base)


@pytest.mark.parametrize("method", ["relora", "sst"])
def test_a_reset_parameter_learns_as_in_a_new_optimiser(method):
    model = network()
    training = apply_low_rank(model, config(method))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    steps_of(model, training, optimizer, 4)
    copy = deepcopy(model)
    steps_of(model, training, optimizer, 1, first=4)
    steps_of(copy, type(training)(), torch.optim.AdamW(copy.parameters(), lr=0.01, fused=True), 1, first=4)
    name = "up" if method == "relora" else "left"
    ours, fresh = getattr(model[0], name), getattr(copy[0], name)
    if method == "sst":
        copy[0].after_update()
    torch.testing.assert_close(ours, fresh, rtol=0, atol=1e-12)


def reference_galore(weight, gradient_of, steps, rank, refresh, rate, scale):
    """The algorithm as the paper writes it, one matrix at a time."""
    weight = weight.clone()
    tall = weight.shape[0] >= weight.shape[1]
    first = second = 0
    for step in range(steps):
        gradient = gradient_of(weight, step)
        if step % refresh == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            basis = right[:rank].T if tall else left[:, :rank]
        projected = gradient @ basis if tall else basis.T @ gradient
        first = 0.9 * first + 0.1 * projected
        second = 0.999 * second + 0.001 * projected**2
        normed = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        weight -= rate * scale * (normed @ basis.T if tall else basis @ normed)
    return weight


@pytest.mark.parametrize(("out", "in_"), [(9, 6), (6, 9)])
def test_galore_takes_the_steps_that_the_paper_writes(out, in_):
    torch.manual_seed(0)
    linear, target = nn.Linear(in_, out, bias=False).double(), torch.randn(out, in_, dtype=torch.float64)
    start = linear.weight.detach().clone()
    data = torch.randn(20, 7, in_, dtype=torch.float64)
    model = nn.Sequential(linear)
    training = apply_low_rank(model, config("galore", iteration_steps=5))
    optimizer = torch.optim.Adam([model[0].update], lr=0.1)
    for step in range(17):
        (model(data[step]) - data[step] @ target.T).square().sum().div(2).backward()
        training.before_update(step)
        optimizer.step()
        training.after_update(step, optimizer)
    expected = reference_galore(
        start, lambda weight, step: (weight - target) @ data[step].T @ data[step], 17, 3, 5, 0.1, 0.25
    )
    torch.testing.assert_close(model[0].weight, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["lora", "sst"])
def test_what_is_drawn_depends_on_the_seed_alone(method):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(states))
        model = network()
        apply_low_rank(model, config(method, seed=seed))
        states.append(model[2].state_dict())
    name = "down" if method == "lora" else "active"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_every_direction_has_its_turn_and_draws_differ_between_iterations():
    model = network()
    training = apply_low_rank(model, config("sst", singular_share=0.0, iteration_steps=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    drawn = []
    for first in range(0, 90, 3):
        drawn.append(tuple(model[0].active.tolist()))
        steps_of(model, training, optimizer, 3, first)
    assert {*itertools.chain(*drawn)} == {*range(8)}
    assert len({*drawn}) > 10


def test_rounds_decompose_and_last_until_each_direction_was_visited_about_once():
    model = network()
    training = apply_low_rank(model, config("sst", rank=2))
    assert training.cycle == Cycle(iteration_steps=4, warmup=2, iterations_per_round=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for iteration in range(1, 9):
        steps_of(model, training, optimizer, 4, first=4 * (iteration - 1))
        left, _ = model[0].vectors()
        upright = torch.allclose(left @ left.T, torch.eye(8, dtype=torch.float64), atol=1e-10)
        assert upright == (iteration % 4 == 0)


def test_learning_rate_rises_again_in_every_iteration_but_the_first():
    factors = [Cycle(iteration_steps=5, warmup=2).rate_factor(step) for step in range(12)]
    assert factors == [1, 1, 1, 1, 1, 0.5, 1, 1, 1, 1, 0.5, 1]
    assert {Cycle().rate_factor(step) for step in range(1000)} == {1.0}
    assert {Cycle(iteration_steps=5).rate_factor(step) for step in range(20)} == {1.0}


def test_optimiser_decays_matrices_and_spares_vectors_and_what_modules_name():
    class Gate(nn.Module):
        undecayed = ("spared",)

        def __init__(self):
            super().__init__()
            self.spared = nn.Parameter(torch.ones(2, 2))
            self.decayed = nn.Parameter(torch.ones(2, 2))

    model = nn.ModuleDict({"gate": Gate(), "norm": nn.LayerNorm(3), "linear": nn.Linear(3, 3)})
    model["linear"].weight.requires_grad_(False)
    decayed, spared = new_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model["gate"].decayed)]
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (model["gate"].spared, *model["norm"].parameters(), model["linear"].bias)
    }


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("lora", 3 * (10 + 8) + 3 * (8 + 12)),
        ("galore", 3 * 10 + 3 * 12),
        ("sst", 3 * (10 + 8) + 8 + 3 * (8 + 12) + 8),
    ],
)
def test_optimiser_holds_the_numbers_a_method_trains(method, trained):
    model = network()
    apply_low_rank(model, config(method))
    optimizer = new_optimizer(model, TrainConfig())
    assert trained_parameters(optimizer) == trained + 8  # and the bias
    assert optimizer.param_groups[0]["params"] == []  # factors are not decayed


@pytest.mark.parametrize("method", METHODS)
def test_rank_above_a_layers_size_is_cut_with_a_warning(method):
    model = network()
    with pytest.warns(UserWarning, match=r"2 layers are smaller than rank 50 and get less: 0 8, 2 8"):
        training = apply_low_rank(model, config(method, rank=50))
    assert [layer.rank for layer in training.layers] == [8, 8]


def test_a_run_that_ends_before_its_first_round_is_warned_of():
    with pytest.warns(UserWarning, match="11 steps end before the first round, which takes 12"):
        apply_low_rank(network(), config("sst"), total_steps=11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_low_rank(network(), config("sst"), total_steps=12)
        apply_low_rank(network(), config("lora"), total_steps=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"iteration_steps": 0}, "iteration_steps is 0"),
        ({"iteration_steps": 2}, "iteration_steps 2 leave nothing after 2 steps of warm-up"),
        ({"iteration_warmup": -1}, "iteration_warmup is -1"),
        ({"iterations_per_round": 0}, "iterations_per_round is 0"),
        ({"singular_share": 1.0}, r"singular_share is 1\.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, message):
    with pytest.raises(PerplabError, match=message):
        config("sst", **wrong)


def test_methods_without_a_second_warm_up_do_not_mind_its_length():
    assert TrainConfig(method="lora", iteration_steps=5).low_rank.rank == 16
    assert TrainConfig(method="galore", iteration_steps=5).low_rank.iteration_steps == 5
    with pytest.raises(PerplabError, match="iteration_steps 5 leave nothing"):
        TrainConfig(method="relora", iteration_steps=5)
    assert TrainConfig(iteration_steps=5).low_rank is None


def test_model_already_under_a_method_is_refused():
    model = network()
    apply_low_rank(model, config("lora"))
    with pytest.raises(PerplabError, match="0 is already under a low-rank method"):
        apply_low_rank(model, config("sst"))


def test_model_wrapped_by_peft_is_refused(tiny_model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(PerplabError, match=r"q_proj is already wrapped by peft"):
        apply_low_rank(model, config("sst"))


def test_quantised_model_is_refused():
    codes, zero = torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(8, 1, dtype=torch.uint8)
    matrix = QuantizedMatrix(codes, torch.ones(8, 1), zero, 4)
    with pytest.raises(PerplabError, match="0 is quantised"):
        apply_low_rank(nn.Sequential(PackedLinear(matrix)), config("sst"))


def test_model_without_linear_layers_is_refused():
    with pytest.raises(PerplabError, match="no linear layers"):
        apply_low_rank(nn.Sequential(nn.ReLU()), config("sst"))
