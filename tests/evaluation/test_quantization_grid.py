import copy

import numpy as np
import pytest

from perplab.compression import QuantizeConfig, quantize
from perplab.errors import PerplabError
from perplab.evaluation.quantization import (
    Cell,
    CellResult,
    EffectiveBits,
    Grid,
    Measurement,
    cells_of,
    effective_bits,
    grid_table,
    measure_generation,
    run_grid,
)
from perplab.evaluation.quantization.answers import answers
from perplab.evaluation.quantization.generation_speed import GenerationConfig, scaled_protocol
from perplab.evaluation.quantization.real_text import BuiltInTasks, TextCost
from perplab.evaluation.quantization.suite import QuantizationSuiteConfig, evaluate_quantization
from perplab.evaluation.suite import EvaluateConfig
from perplab.models import LanguageModel
from perplab.models.anatomy import linear_layers
from perplab.models.generation import GenerateConfig, generate
from perplab.text import Document

DOCUMENTS = [Document(f"document {place} says that {place * 7} is a number", "text", str(place)) for place in range(6)]


@pytest.fixture
def subject(tiny_model, tiny_tokenizer):
    return LanguageModel(tiny_model("llama"), tiny_tokenizer, name="tiny")


def rounded(subject, bits):
    """The model with each row of its matrices rounded to a grid: a stand-in for any quantiser."""
    import torch

    made = copy.copy(subject)
    made.model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for layer in linear_layers(made.model).values():
            step = layer.weight.abs().amax(dim=1, keepdim=True) / 2 ** (bits - 1)
            layer.weight.copy_((layer.weight / step).round() * step)
    return made


def test_every_cell_is_measured_on_a_model_of_its_own(subject):
    made = []

    def compress(method, bits):
        made.append((method, bits))
        return rounded(subject, bits)

    grid = run_grid(subject, compress, cells_of(("rtn",), (8, 2)), [TextCost(DOCUMENTS)], timed=False)
    assert made == [("rtn", 8), ("rtn", 2)]
    assert [cell.name for cell in grid.cells] == ["rtn-8", "rtn-2"]
    alone = [TextCost(DOCUMENTS)(model)[0].value for model in (subject, rounded(subject, 8), rounded(subject, 2))]
    assert [cell.measurements[0].value for cell in (grid.reference, *grid.cells)] == pytest.approx(alone)


def test_fine_rounding_costs_less_than_coarse(subject):
    cells = cells_of(("rtn",), (16, 8, 2))
    grid = run_grid(subject, lambda _, bits: rounded(subject, bits), cells, [TextCost(DOCUMENTS)], timed=False)
    reference, fine, middle, coarse = (cell.measurements[0].value for cell in (grid.reference, *grid.cells))
    assert abs(fine - reference) < 1e-4
    assert abs(fine - reference) < abs(middle - reference) < abs(coarse - reference)


def test_an_interrupted_grid_goes_on_where_it_was(subject, tmp_path):
    folder, made = tmp_path / "grid", []

    def compress(method, bits):
        made.append(bits)
        if bits == 2 and made.count(2) == 1:
            raise KeyboardInterrupt
        return rounded(subject, bits)

    def run():
        return run_grid(
            subject, compress, cells_of(("rtn",), (8, 2)), [TextCost(DOCUMENTS)], folder=folder, timed=False
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    resumed = run()
    assert made == [8, 2, 2]
    again = run()
    assert made == [8, 2, 2]
    for one, other in zip((resumed.reference, *resumed.cells), (again.reference, *again.cells), strict=True):
        assert one.as_json() == other.as_json()


def test_a_folder_of_other_settings_is_refused_before_any_work(subject, tmp_path):
    def compress(method, bits):
        raise AssertionError("work was done")

    run_grid(subject, compress, [], [TextCost(DOCUMENTS)], folder=tmp_path / "grid", settings={"seed": 0}, timed=False)
    with pytest.raises(PerplabError, match="other settings"):
        run_grid(subject, compress, cells_of(("rtn",), (8,)), [], folder=tmp_path / "grid", settings={"seed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(PerplabError, match="holds no grid"):
        run_grid(subject, compress, [], [], folder=tmp_path)


def test_cells_are_every_method_at_every_number_of_bits_that_it_has():
    assert cells_of(("rtn", "llm-int8"), (8, 4)) == [Cell("rtn", 8), Cell("rtn", 4), Cell("llm-int8", 8)]
    with pytest.raises(PerplabError, match="no cell"):
        cells_of(("llm-int8",), (4,))


def accuracy(name, right, *, dimension="knowledge", chance=0.25):
    counts = np.stack((np.array(right, dtype=float), np.ones(len(right))), axis=1)
    return Measurement(name, dimension, "mean", counts, chance=chance)


def cell(name, facts, truth, noise):
    bits = EffectiveBits(4.0, 4.0, 1000)
    measurements = accuracy("facts", facts), accuracy("noise", noise), accuracy("truth", truth, dimension="alignment")
    return CellResult(name, measurements, bits, None)


@pytest.fixture
def table():
    """A good model, a form of it that lost a little, and one that collapsed."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 4, 100) == 0
    good, less = np.arange(100) < 90, np.arange(100) < 80
    reference = cell("reference", good, good, noise)
    collapsed = cell("rtn-2", noise, np.ones(100), noise)
    return grid_table(Grid("tiny", reference, (cell("rtn-4", less, good, noise), collapsed)), resamples=500)


def test_differences_are_paired_and_retention_is_the_share_that_is_left(table):
    _, lost, _ = (row.entries for row in table.rows)
    assert lost["facts"].difference.value == pytest.approx(-0.1)
    assert lost["facts"].difference.interval.high < 0
    assert lost["facts"].retention == pytest.approx(0.8 / 0.9)
    assert lost["truth"].difference.value == 0
    assert lost["truth"].retention == 1


def test_a_task_at_chance_has_no_signal_in_any_row(table):
    assert {row.entries["noise"].reading for row in table.rows} == {"no signal"}


def test_alignment_of_a_collapsed_model_is_not_read(table):
    assert [row.entries["truth"].reading for row in table.rows] == ["measured", "measured", "below chance"]
    assert table.rows[2].entries["facts"].reading == "measured"


def test_bits_of_whole_rows_are_those_of_codes_and_of_a_scale_and_a_zero_point_a_row(subject):
    found = effective_bits(quantize(subject, None, QuantizeConfig(method="rtn", bits=4)))
    weights = [layer.weight for layer in linear_layers(subject.model).values()]
    statistics = sum((16 + 4) * len(weight) for weight in weights) / sum(weight.numel() for weight in weights)
    assert found.nominal == pytest.approx(4 + statistics)


def test_an_ordinary_model_has_the_bits_of_its_dtype(subject):
    found = effective_bits(subject)
    assert (found.nominal, found.stored, found.is_simulated) == (32, 32, False)
    half = copy.copy(subject)
    half.model = copy.deepcopy(subject.model).half()
    assert effective_bits(half).stored == 16
    assert effective_bits(half).checkpoint_bytes * 2 == found.checkpoint_bytes


def test_rounded_values_in_ordinary_weights_are_counted_as_stored_and_told_as_simulated(subject):
    settings = QuantizeConfig(method="spqr", bits=2, group_size=16, windows=4, length=16)
    found = effective_bits(quantize(subject, DOCUMENTS, settings))
    assert found.stored > 25
    assert 2 + 2 * 3 / 16 + 64 / 256 <= found.nominal < 10
    assert found.is_simulated


def test_answers_do_not_depend_on_what_they_are_batched_with(subject):
    prompts = ["one", "two", "three", "to", "a longer prompt"]
    together = answers(subject, prompts, 6)
    assert together == [answers(subject, [prompt], 6)[0] for prompt in prompts]
    greedy = GenerateConfig(max_new_tokens=6, temperature=0)
    assert together == [generate(subject, prompt, greedy) for prompt in prompts]


def test_a_prompt_that_does_not_fit_is_refused(subject):
    with pytest.raises(PerplabError, match="positions"):
        answers(subject, ["x" * subject.model.config.max_position_embeddings], 6)


def test_the_protocol_fits_the_model_and_is_told_with_the_speed(subject):
    subject.model.config.max_position_embeddings = 96
    protocol = scaled_protocol(subject)
    assert (protocol.prompt_tokens, protocol.new_tokens) == (32, 64)
    found = measure_generation(subject, GenerationConfig(prompt_tokens=8, new_tokens=4, batch_size=2, rounds=1))
    assert (found.prompt_tokens, found.new_tokens, found.batch_size) == (8, 4, 2)
    assert found.prompt_tokens_per_second > 0
    assert found.new_tokens_per_second > 0
    assert (found.kernel, found.dtype, found.device) == ("Linear", "float32", "cpu")
    with pytest.raises(PerplabError, match="positions"):
        measure_generation(subject, GenerationConfig(prompt_tokens=90, new_tokens=90))


def test_built_in_tasks_keep_the_accuracy_of_their_room(subject):
    from perplab.evaluation import evaluate

    sentences = "the boat was slow, and the captain knew that the river {} would bring them home by {}. "
    words = ("morning", "evening", "winter", "summer", "harvest", "moonlight")
    texts = [
        "".join(sentences.format(word, words[(place + turn) % 6]) for turn, word in enumerate(words))
        for place in range(4)
    ]
    documents = [Document(text, "text", str(place)) for place, text in enumerate(texts)]
    config = EvaluateConfig(tasks=("last-word",), limit=8)
    (expected,) = evaluate(subject, documents, config)
    (found,) = BuiltInTasks(documents, config)(subject)
    assert (found.value, found.chance) == pytest.approx((expected.accuracy, expected.chance))


def test_the_suite_measures_a_model_beside_its_quantised_forms(subject, tmp_path):
    config = QuantizationSuiteConfig(methods=("rtn", "gptq"), bits=(8, 2), windows=4, length=16, tasks=(), timed=False)
    grid = evaluate_quantization(subject, DOCUMENTS, DOCUMENTS, config, folder=tmp_path / "grid")
    costs = {one.name: one.measured("log perplexity").value for one in (grid.reference, *grid.cells)}
    assert list(costs) == ["reference", "rtn-8", "rtn-2", "gptq-8", "gptq-2"]
    assert abs(costs["gptq-8"] - costs["reference"]) < abs(costs["gptq-2"] - costs["reference"])


@pytest.mark.parametrize("settings", [{"methods": ("zip",)}, {"bits": (1,)}, {"limit": 0}, {"methods": ()}])
def test_a_suite_that_cannot_be_meant_is_refused(settings):
    with pytest.raises(PerplabError):
        QuantizationSuiteConfig(**settings)
