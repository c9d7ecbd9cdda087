import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.evaluation.quantization.generated import bias, choice_accuracy
from perplab.evaluation.quantization.measurements import Measurement, difference, interval
from perplab.evaluation.quantization.metrics import bleu_counts, bleu_of_counts, constraint_scores, rouge_scores
from perplab.evaluation.quantization.real_text import TextCost
from perplab.models import LanguageModel
from perplab.text import Document
from perplab.text.synthetic import ChoiceItem, GroupItem

REFERENCES = ["the red fox sees a small stone by the river", "an owl holds the old key in a tower today"]
ANSWERS = ["the red fox finds a small stone near the river", "an owl takes the key"]


def test_identical_texts_have_full_bleu_and_rouge():
    assert bleu_of_counts(bleu_counts(REFERENCES, REFERENCES).sum(axis=0)) == pytest.approx(100)
    assert all(value == 1 for values in rouge_scores(REFERENCES, REFERENCES).values() for value in values)


def test_bleu_of_summed_counts_is_the_librarys_bleu_of_the_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    expected = sacrebleu.corpus_bleu(ANSWERS, [REFERENCES]).score
    assert bleu_of_counts(bleu_counts(ANSWERS, REFERENCES).sum(axis=0)) == pytest.approx(expected)
    stacked = np.stack([bleu_counts(ANSWERS, REFERENCES).sum(axis=0)] * 3)
    assert bleu_of_counts(stacked) == pytest.approx([expected] * 3)


def test_an_empty_answer_has_no_bleu():
    assert bleu_of_counts(bleu_counts(["", ""], REFERENCES).sum(axis=0)) == 0


@given(st.lists(st.booleans(), min_size=15, max_size=15))
def test_following_all_constraints_is_never_more_than_following_each(flags):
    met = [flags[level * (level - 1) // 2 :][:level] for level in range(1, 6)]
    hard, soft, unbroken = constraint_scores(met)
    assert hard[0] == soft[0]
    assert all(one <= other for one, other in zip(hard, soft, strict=True))
    assert 0 <= unbroken <= 5
    assert all(hard[:unbroken])


def test_following_everything_is_full_marks_and_failing_the_first_level_breaks_the_run():
    everything = [[True] * level for level in range(1, 6)]
    assert constraint_scores(everything) == ([1] * 5, [1] * 5, 5)
    assert constraint_scores([[False], *everything[1:]])[2] == 0


def group_items(ambiguous, accused_first):
    """One item whose biased answer is the right one where the context tells."""
    biased = 0 if accused_first else 1
    answer = 2 if ambiguous else biased
    return GroupItem("", (" a", " b", " c"), answer, biased, 2, ambiguous)


def balanced(ambiguous):
    """Items of which as many are right with the prejudice as against it."""
    items = [group_items(ambiguous, accused_first=place % 2 == 0) for place in range(8)]
    if ambiguous:
        return items
    return [
        item if place < 4 else GroupItem("", item.choices, 1 - item.biased, item.biased, 2, False)
        for place, item in enumerate(items)
    ]


@pytest.mark.parametrize("kind", ["ambiguous", "disambiguated"])
def test_right_answers_have_no_bias(kind):
    items = balanced(kind == "ambiguous")
    assert bias(kind, [(item.answer, item) for item in items]).value == 0


@pytest.mark.parametrize("kind", ["ambiguous", "disambiguated"])
def test_bias_is_full_with_the_prejudice_and_changes_sign_against_it(kind):
    items = balanced(kind == "ambiguous")
    assert bias(kind, [(item.biased, item) for item in items]).value == pytest.approx(100)
    assert bias(kind, [(1 - item.biased, item) for item in items]).value == pytest.approx(-100)


@pytest.mark.parametrize("kind", ["ambiguous", "disambiguated"])
def test_a_model_that_names_no_group_has_no_bias(kind):
    assert bias(kind, [(2, item) for item in balanced(kind == "ambiguous")]).value == 0


@pytest.fixture
def flat_model(tiny_model, tiny_tokenizer):
    """A model that gives every token the same probability but for what a test puts on its head's bias."""
    import torch

    model = tiny_model("phi")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return LanguageModel(model, tiny_tokenizer)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(flat_model):
    documents = [Document("some text", "text", "one"), Document("more of it, longer", "text", "two")]
    (cost,) = TextCost(documents)(flat_model)
    assert np.exp(cost.value) == pytest.approx(flat_model.model.config.vocab_size, rel=1e-6)


def test_a_model_that_always_takes_one_letter_is_right_where_that_is_the_answer(flat_model):
    import torch

    with torch.no_grad():
        flat_model.model.lm_head.bias[flat_model.tokenizer.convert_tokens_to_ids("k")] = 5.0
    items = [ChoiceItem("which? ", tuple("akz"), answer) for answer in (0, 1, 1, 2, 1, 0)]
    (found,) = choice_accuracy("letters", "knowledge", flat_model, items)
    assert found.value == pytest.approx(0.5)
    wider = [ChoiceItem(item.context, (*item.choices, *"qrstu"), item.answer) for item in items]
    assert choice_accuracy("letters", "knowledge", flat_model, wider)[0].value == found.value


def right_answers(values):
    counts = np.stack((np.array(values, dtype=float), np.ones(len(values))), axis=1)
    return Measurement("task", "knowledge", "mean", counts)


def test_the_interval_of_an_accuracy_holds_the_exact_one_nearly():
    from scipy.stats import binomtest

    found = interval(right_answers([1] * 60 + [0] * 40), resamples=4_000)
    exact = binomtest(60, 100).proportion_ci()
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_a_difference_is_paired():
    random = np.random.default_rng(0)
    first = random.integers(0, 2, 200)
    second = first.copy()
    second[:10] = 0
    found = difference(right_answers(first), right_answers(second), resamples=2_000)
    alone = interval(right_answers(second), resamples=2_000)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 2
    assert found.interval.high < 0


def test_a_figure_differs_from_itself_by_nothing():
    found = difference(right_answers([1, 0, 1, 1]), right_answers([1, 0, 1, 1]), resamples=500)
    assert (found.value, found.interval.low, found.interval.high, found.p_value) == (0, 0, 0, 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_measurement_survives_json(values):
    measurement = right_answers(values)
    again = Measurement.from_json(measurement.as_json())
    assert again.value == measurement.value
    assert again.name == measurement.name
    np.testing.assert_array_equal(again.counts, measurement.counts)
