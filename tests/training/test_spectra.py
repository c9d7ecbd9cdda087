import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.training.low_rank import LowRankConfig, Spectrum, apply_low_rank, merge_low_rank, spectrum, truncate


def logits(model):
    return model(torch.arange(24).view(2, 12) % 97).logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_spectrum_has_the_energy_of_the_weights_with_and_without_a_method(family, tiny_model):
    model = tiny_model(family)
    plain = spectrum(model)
    weights = dict(model.named_parameters())
    for layer in plain:
        torch.testing.assert_close(layer.values.norm(), weights[f"{layer.path}.weight"].norm(), rtol=1e-5, atol=0)
        assert (layer.values[:-1] >= layer.values[1:]).all()
    apply_low_rank(model, LowRankConfig(rank=3))
    for layer, before in zip(spectrum(model), plain, strict=True):
        assert layer.path == before.path
        torch.testing.assert_close(layer.values, before.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (9 / 14, 1), (9.01 / 14, 2), (13 / 14, 2), (0.99, 3), (1.0, 4)])
def test_energy_rank_is_the_smallest_that_holds_the_share(energy, rank):
    assert Spectrum("layer", torch.tensor([3.0, 2.0, 1.0, 0.0])).energy_rank(energy) == rank


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1])
def test_share_of_energy_that_cannot_be_kept_is_refused(energy, tiny_model):
    with pytest.raises(PerplabError, match="give a share above 0 and at most 1"):
        truncate(tiny_model("llama"), energy)


def test_truncating_to_all_energy_is_merging(tiny_model):
    merged, truncated = tiny_model("gpt2"), tiny_model("gpt2")
    for model in (merged, truncated):
        apply_low_rank(model, LowRankConfig(rank=3))
    merge_low_rank(merged)
    assert {*truncate(truncated, 1.0).values()} == {32}
    for name, weight in merged.state_dict().items():
        assert torch.equal(weight, truncated.state_dict()[name])


@pytest.mark.parametrize("method", ["lora", "sst"])
def test_truncated_weight_keeps_the_share_of_energy_at_the_rank_that_is_told(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30))
    before = model[0].weight.detach().clone()
    apply_low_rank(model, LowRankConfig(method=method, rank=3))
    (rank,) = truncate(model, 0.8).values()
    assert isinstance(model[0], nn.Linear)
    assert torch.linalg.matrix_rank(model[0].weight) == rank < 20
    shares = model[0].weight.square().sum() / before.square().sum()
    assert 0.8 <= shares.item() < 0.9
    best = torch.linalg.svdvals(before)[rank:].norm()  # Eckart and Young: nothing of this rank is nearer
    torch.testing.assert_close((model[0].weight - before).norm(), best, rtol=1e-4, atol=0)


def test_model_changes_less_the_more_energy_it_keeps(tiny_model):
    expected = logits(tiny_model("llama"))
    distances = []
    for energy in (0.5, 0.9, 0.999):
        model = tiny_model("llama")
        truncate(model, energy)
        distances.append((logits(model) - expected).norm().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.2 * distances[0]


def test_matrix_that_is_not_finite_has_an_error_that_says_so():
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(PerplabError, match="not finite"):
        spectrum(model)
