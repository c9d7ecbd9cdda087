from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from perplab.errors import PerplabError
from perplab.laws.flatness import Batch, hessian_trace

STOCHASTIC = ("fisher", "fisher-batch", "hutchinson", "hutchinson-gaussian", "hutch++")
CONTEXTS, WORDS, COPIES = 8, 6, 20


class LogBilinear(nn.Module):
    """Logits of a word after a context are the product of their vectors."""

    def __init__(self, contexts, words):
        super().__init__()
        self.contexts, self.words = nn.Parameter(contexts), nn.Parameter(words)

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.contexts[input_ids] @ self.words.T)


class Perceptron(nn.Module):
    """One hidden layer between a token and the next."""

    def __init__(self, vocabulary=5, width=4, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width, dtype=torch.float64)
            self.hidden = nn.Linear(width, width, dtype=torch.float64)
            self.head = nn.Linear(width, vocabulary, dtype=torch.float64)

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.head(torch.tanh(self.hidden(self.embedding(input_ids)))))


class Quadratic(nn.Module):
    """A model of two words whose cost of the first is x^T Q x / 2 + 1, whatever it reads."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix, self.x = matrix, nn.Parameter(torch.linspace(-1, 1, len(matrix), dtype=torch.float64))

    def forward(self, input_ids, use_cache):
        cost = self.x @ self.matrix @ self.x / 2 + 1
        logits = torch.stack([torch.zeros_like(cost), torch.log(torch.expm1(cost))])
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, 2))


@pytest.fixture(scope="module")
def saturated():
    """A log-bilinear model at the exact minimiser, its text, and the closed form of its trace."""
    random = np.random.default_rng(0)
    counts = 1 + random.multinomial(COPIES - WORDS, [1 / WORDS] * WORDS, size=CONTEXTS)
    p = torch.from_numpy(counts / COPIES)
    left, scale, right = torch.linalg.svd(p.log())
    contexts, words = 3 * left[:, :WORDS] * scale.sqrt(), (right.T * scale.sqrt()) / 3
    labels = torch.tensor([word for row in counts for word, times in enumerate(row) for _ in range(times)])
    ids = torch.arange(CONTEXTS).repeat_interleave(COPIES)
    batches = [Batch(ids[None, at::4].T, labels[None, at::4].T) for at in range(4)]
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    by_words = sum(contexts[c].square().sum() * spread[c].trace() for c in range(CONTEXTS)) / CONTEXTS
    by_contexts = sum((words.T @ spread[c] @ words).trace() for c in range(CONTEXTS)) / CONTEXTS
    return LogBilinear(contexts, words), batches, {"contexts": float(by_contexts), "words": float(by_words)}


@pytest.fixture(scope="module")
def text():
    ids = torch.randint(5, (6, 7), generator=torch.Generator().manual_seed(3))
    return [Batch.of_rows(ids[:4]), Batch.of_rows(ids[4:])]


def flat_loss(model, batches):
    """The mean loss as a function of a flat vector, by `torch.func` and independent of the package."""
    names, tensors = zip(*model.named_parameters(), strict=True)
    shapes, sizes = [tensor.shape for tensor in tensors], [tensor.numel() for tensor in tensors]

    def logits(vector):
        parts = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        weights = dict(zip(names, parts, strict=True))
        outputs = [
            torch.func.functional_call(model, weights, (), {"input_ids": batch.input_ids, "use_cache": False}).logits
            for batch in batches
        ]
        return torch.cat([output.flatten(0, 1) for output in outputs])

    labels = torch.cat([batch.labels.flatten() for batch in batches])
    vector = torch.cat([tensor.detach().flatten() for tensor in tensors])
    return lambda given: nn.functional.cross_entropy(logits(given), labels), logits, vector


def hessian_of(model, batches):
    loss, _, vector = flat_loss(model, batches)
    return torch.func.hessian(loss)(vector)


def gauss_newton_trace(model, batches):
    _, logits, vector = flat_loss(model, batches)
    jacobian = torch.func.jacrev(logits)(vector)
    p = torch.softmax(logits(vector), dim=-1)
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return float(torch.einsum("nvp,nvw,nwp->", jacobian, spread, jacobian) / len(p))


def test_the_exact_trace_at_the_minimiser_is_the_closed_form(saturated):
    model, batches, parts = saturated
    found = hessian_trace(model, batches, "exact")
    assert found.value == pytest.approx(sum(parts.values()), rel=1e-10)
    assert dict(found.by_module) == pytest.approx(parts, rel=1e-10)
    assert found.standard_error == 0
    assert found.interval.low == found.value == found.interval.high


@pytest.mark.parametrize("method", STOCHASTIC)
def test_every_estimator_finds_the_trace_at_the_minimiser(saturated, method):
    model, batches, parts = saturated
    found = hessian_trace(model, batches, method, samples=60, seed=1)
    assert abs(found.value - sum(parts.values())) < 4 * found.standard_error
    assert found.standard_error < 0.2 * found.value


def test_the_exact_trace_is_the_trace_of_the_autograd_hessian(text):
    model = Perceptron()
    expected = float(hessian_of(model, text).trace())
    assert hessian_trace(model, text, "exact").value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", ["fisher", "fisher-batch"])
def test_the_fisher_trace_is_the_gauss_newton_trace_where_it_is_not_the_hessian_trace(text, method):
    model = Perceptron()
    gauss_newton, hessian = gauss_newton_trace(model, text), float(hessian_of(model, text).trace())
    found = hessian_trace(model, text, method, samples=400)
    assert abs(found.value - gauss_newton) < 4 * found.standard_error
    assert abs(found.value - hessian) > 4 * found.standard_error


@pytest.mark.parametrize("method", ["hutchinson", "hutchinson-gaussian", "hutch++"])
def test_probes_find_the_hessian_trace_where_it_is_not_the_gauss_newton_trace(text, method):
    model = Perceptron()
    gauss_newton, hessian = gauss_newton_trace(model, text), float(hessian_of(model, text).trace())
    found = hessian_trace(model, text, method, samples=60 if method == "hutch++" else 300)
    assert abs(found.value - hessian) < 4 * found.standard_error
    assert abs(found.value - gauss_newton) > 4 * found.standard_error


@pytest.mark.parametrize("method", ["hutchinson", "hutchinson-gaussian", "hutch++"])
def test_probes_find_the_trace_of_a_known_quadratic(method):
    root = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.T
    found = hessian_trace(Quadratic(matrix), one_word(), method, samples=20 if method == "hutch++" else 200)
    assert abs(found.value - float(matrix.trace())) < 4 * found.standard_error


def test_one_rademacher_probe_is_exact_for_a_diagonal_matrix():
    diagonal = torch.tensor([3.0, -1.0, 0.5, 8.0], dtype=torch.float64)
    model = Quadratic(torch.diag(diagonal))
    found = hessian_trace(model, one_word(), "hutchinson", samples=1)
    assert found.value == pytest.approx(10.5, rel=1e-9)
    assert found.standard_error is None
    assert found.interval is None
    assert hessian_trace(model, one_word(), "hutchinson-gaussian", samples=1).value != pytest.approx(10.5, rel=1e-3)


@pytest.mark.parametrize(("method", "drops_diagonal"), [("hutchinson", True), ("hutchinson-gaussian", False)])
def test_the_standard_error_of_probes_is_that_of_theory(method, drops_diagonal):
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = root @ root.T
    samples = 2000
    variance = 2 * (matrix.square().sum() - drops_diagonal * matrix.diagonal().square().sum())
    found = hessian_trace(Quadratic(matrix), one_word(), method, samples=samples)
    assert found.standard_error == pytest.approx(float((variance / samples).sqrt()), rel=0.1)


def test_sketching_a_matrix_of_low_rank_leaves_no_error():
    root = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    matrix = root @ root.T
    found = hessian_trace(Quadratic(matrix), one_word(), "hutch++", samples=12)
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-9)


def test_intervals_hold_the_trace_as_often_as_they_say(saturated):
    model, batches, _ = saturated
    rows = list(batches[0].rows())[::8]
    traces = [hessian_trace(model, rows, "fisher", samples=4, seed=seed) for seed in range(100)]
    truth = gauss_newton_trace(model, rows)
    held = sum(found.interval.low <= truth <= found.interval.high for found in traces)
    assert held >= 87


@pytest.mark.parametrize("method", ["fisher", "exact"])
def test_the_trace_does_not_depend_on_batches(text, method):
    model = Perceptron()
    whole = hessian_trace(model, text, method)
    rows = [row for batch in text for row in batch.rows()]
    assert hessian_trace(model, rows, method).value == pytest.approx(whole.value, rel=1e-12)


def test_the_trace_does_not_depend_on_the_order_of_tokens_and_rows(text):
    model = Perceptron()  # reads one token at a time
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [Batch(text[0].input_ids[order].flip(1), text[0].labels[order].flip(1)), text[1]]
    expected = hessian_trace(model, text, "exact").value
    assert hessian_trace(model, shuffled, "exact").value == pytest.approx(expected, rel=1e-12)


def test_a_filter_gives_the_part_of_its_parameters(text):
    model = Perceptron()
    whole = hessian_trace(model, text, "exact")
    part = hessian_trace(model, text, "exact", parameters=lambda name: name.startswith("head"))
    assert part.value == pytest.approx(whole.by_module["head"], rel=1e-10)
    assert list(part.by_module) == ["head"]


def test_a_parameter_without_a_part_in_the_loss_adds_nothing(text):
    model = Perceptron()
    model.unused = nn.Linear(2, 2, dtype=torch.float64)
    for method in ("fisher", "hutchinson"):
        assert hessian_trace(model, text, method, parameters=lambda name: "unused" in name).value == 0


@pytest.mark.parametrize("method", STOCHASTIC)
def test_a_seed_gives_the_same_trace_again(text, method):
    one, again, other = (hessian_trace(Perceptron(), text, method, samples=3, seed=seed).value for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_passes_count_what_was_computed(text):
    model = Perceptron()
    assert hessian_trace(model, text, "fisher", samples=4).passes == pytest.approx(3)
    assert hessian_trace(model, text, "hutchinson", samples=4).passes == 9
    assert hessian_trace(model, text, "hutch++", samples=6).passes == 18
    assert hessian_trace(model, text, "exact").passes == 1 + 2 * sum(part.numel() for part in model.parameters())


@pytest.mark.parametrize("method", STOCHASTIC)
def test_progress_ends_at_all_there_is(text, method):
    seen = []
    hessian_trace(Perceptron(), text, method, samples=6, watch=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ({}, {"method": "hutch"}, "unknown method 'hutch'.*choose from fisher"),
        ({}, {"samples": 0}, "0 samples"),
        ({}, {"parameters": lambda name: False}, "none of the model's 5 parameters is chosen.*embedding.weight"),
        ({"labels": torch.full((2, 3), -100)}, {}, "nothing to predict"),
        ({"vocabulary": 1}, {}, "vocabulary of one token"),
        ({"dtype": torch.bfloat16}, {}, "is torch.bfloat16.*float32"),
        ({"vocabulary": 500}, {"method": "exact"}, "exact trace over 4,520 parameters"),
        ({"scale": float("nan")}, {"method": "hutchinson"}, "not finite"),
    ],
)
def test_what_has_no_trace_is_refused(given, options, told):
    model = Perceptron(given.get("vocabulary", 5)).to(given.get("dtype", torch.float64))
    with torch.no_grad():
        model.head.weight.mul_(given.get("scale", 1.0))
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(PerplabError, match=told):
        hessian_trace(model, [Batch(ids, given.get("labels", ids))], **options)


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(PerplabError, match=r"\(2, 3\), \(2, 4\)"):
        Batch(torch.zeros(2, 3), torch.zeros(2, 4))


def one_word():
    return [Batch(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))]
