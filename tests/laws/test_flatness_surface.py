from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.laws.flatness import Batch, sharpness_profile, top_eigenvalues

ONE_WORD = [Batch(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))]


class Cost(nn.Module):
    """A model of two words whose cost of the first is a function of one vector."""

    def __init__(self, vector, function):
        super().__init__()
        self.x, self.function = nn.Parameter(vector), function

    def forward(self, input_ids, use_cache):
        cost = self.function(self.x)
        logits = torch.stack([torch.zeros_like(cost), torch.log(torch.expm1(cost))])
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, 2))


@pytest.fixture(scope="module")
def quadratic():
    root = torch.randn(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root + root.T
    start = torch.full((30,), 0.01, dtype=torch.float64)
    return Cost(start, lambda x: x @ matrix @ x / 2 + 1), torch.linalg.eigvalsh(matrix).flip(0)


def test_the_top_eigenvalues_are_those_of_the_whole_matrix(quadratic):
    model, eigenvalues = quadratic
    found = top_eigenvalues(model, ONE_WORD, 4)
    assert found.values == pytest.approx(eigenvalues[:4].tolist(), rel=1e-3)
    assert list(found.values) == sorted(found.values, reverse=True)


def test_each_interval_holds_an_eigenvalue(quadratic):
    model, eigenvalues = quadratic
    for interval in top_eigenvalues(model, ONE_WORD, 4, seed=3).intervals:
        slack = 1e-9 * abs(interval.high)
        assert ((interval.low - slack <= eigenvalues) & (eigenvalues <= interval.high + slack)).any()


def test_eigenvalues_of_a_language_model_are_those_of_its_dense_hessian(tiny_model):
    model = tiny_model("gpt2").double()
    text = [Batch.of_rows(torch.randint(101, (2, 7), generator=torch.Generator().manual_seed(0)))]
    names = ["transformer.ln_f.weight", "transformer.h.1.ln_2.bias"]
    found = top_eigenvalues(model, text, 2, parameters=lambda name: name in names)
    values = {name: dict(model.named_parameters())[name] for name in names}

    def loss(*tensors):
        given = {"input_ids": text[0].input_ids, "use_cache": False}
        logits = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (), given).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[0].labels.flatten())

    model.set_attn_implementation("eager")
    blocks = torch.autograd.functional.hessian(loss, tuple(values[name].detach() for name in names))
    dense = torch.cat([torch.cat(row, dim=1) for row in blocks])
    assert found.values == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:2].tolist(), rel=1e-3)


def test_passes_of_eigenvalues_are_three_a_product(quadratic):
    seen = []
    found = top_eigenvalues(quadratic[0], ONE_WORD, 2, watch=lambda done, total: seen.append((done, total)))
    assert found.passes == 3 * len(seen)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)


@pytest.mark.parametrize("count", [0, 30])
def test_a_count_of_eigenvalues_that_cannot_be_is_refused(quadratic, count):
    with pytest.raises(PerplabError, match=f"{count} eigenvalues over 30 parameters"):
        top_eigenvalues(quadratic[0], ONE_WORD, count)


def test_a_loss_that_does_not_bend_has_no_eigenvalues_to_tell_apart():
    with pytest.raises(PerplabError, match="do not come apart"):
        top_eigenvalues(Cost(torch.ones(20, dtype=torch.float64), lambda x: x.detach().sum() + 1), ONE_WORD)


def test_the_profile_of_a_bowl_is_the_bowl():
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
    model = Cost(rows.clone(), lambda x: (x - rows).square().sum() + x.sum() / 100 + 1)
    points = sharpness_profile(model, ONE_WORD, [0.1, 1.0], directions=3)
    assert [point.radius for point in points] == [0, 0.1, 1]
    rest = 1 + float(rows.sum()) / 100  # steps are as long as the rows, and both ways, so the slope cancels
    assert [point.loss for point in points] == pytest.approx([rest, rest + 0.01 * 29, rest + 29], rel=1e-9)
    assert points[1].interval.high - points[1].interval.low == pytest.approx(0, abs=1e-9)


def test_filters_of_a_transposed_matrix_are_its_columns(tiny_model):
    from transformers.pytorch_utils import Conv1D

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Conv1D(2, 3)
            self.layer.weight.data = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
            self.start = self.layer.weight.detach().clone()

        def forward(self, input_ids, use_cache):
            moved = (self.layer.weight - self.start).square().sum(dim=0)
            return SimpleNamespace(logits=moved.expand(*input_ids.shape, 2))

    seen = []
    model = Model()
    model.register_forward_hook(lambda _, __, output: seen.append(output.logits[0, 0].detach()))
    sharpness_profile(model, ONE_WORD, [1.0], directions=2)
    moved = torch.stack(seen[1:])
    torch.testing.assert_close(moved, torch.tensor([25.0, 0.0]).expand(4, 2))


def test_the_loss_of_a_trained_model_rises_with_distance_and_the_interval_holds_it():
    from perplab.models import load

    model = load("pocket", dtype="float32")
    ids = model.tokenizer("def read(path):\n    with open(path) as file:\n        return file.read()\n")["input_ids"]
    points = sharpness_profile(model.model, [Batch.of_rows(torch.tensor([ids]))], [0.1, 0.3, 0.6], directions=3)
    losses = [point.loss for point in points]
    assert losses == sorted(losses)
    assert all(point.interval.low <= point.loss <= point.interval.high for point in points)


def test_the_weights_are_put_back_to_the_bit(tiny_model):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sharpness_profile(model, [Batch.of_rows(torch.arange(9)[None])], directions=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_biases_and_gains_stay(tiny_model):
    model = tiny_model("gpt2")
    text = [Batch.of_rows(torch.arange(9)[None])]
    points = sharpness_profile(model, text, directions=2, parameters=lambda name: "ln_" in name or "bias" in name)
    assert np.ptp([point.loss for point in points]) < 1e-6


def test_one_direction_has_no_interval(tiny_model):
    points = sharpness_profile(tiny_model("llama"), [Batch.of_rows(torch.arange(9)[None])], [0.2], directions=1)
    assert points[1].interval is None


@pytest.mark.parametrize(
    ("options", "told"),
    [({"radii": []}, "radii"), ({"radii": [0.1, 0]}, "above 0"), ({"directions": 0}, "0 directions")],
)
def test_a_profile_that_cannot_be_is_refused(tiny_model, options, told):
    with pytest.raises(PerplabError, match=told):
        sharpness_profile(tiny_model("llama"), [Batch.of_rows(torch.arange(9)[None])], **options)
