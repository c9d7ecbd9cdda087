"""Comparing two models: what is set side by side, and what is remembered."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from perplab.commands.compare import compare as compare_command
from perplab.errors import PerplabError
from perplab.evaluation.comparing import CompareConfig, compare
from perplab.evaluation.footprint import time_in_turn, with_peak_memory
from perplab.evaluation.items import TaskItem
from perplab.evaluation.ledger import ComparisonKey, Ledger, text_fingerprint
from perplab.evaluation.proxy_verdict import VariantOutcome
from perplab.evaluation.suite import TaskResult
from perplab.evaluation.task_comparison import MEAN, compare_tasks
from perplab.models import LanguageModel
from perplab.scoring import score
from perplab.scoring.bootstrap import Interval, PairedDifference, bootstrap_paired
from perplab.text import Document

WORDS = [
    "the",
    "cat",
    "sat",
    "near",
    "warm",
    "stove",
    "while",
    "rain",
    "fell",
    "upon",
    "every",
    "roof",
    "along",
    "quiet",
]


def prose(number):
    random = np.random.default_rng(number)
    sentences = [" ".join(random.permutation(WORDS)[:9]) + "." for _ in range(6)]
    return Document(" ".join(sentences), "prose", f"prose {number}")


DOCUMENTS = [prose(number) for number in range(6)]
CONFIG = CompareConfig(limit=8, rounds=1, resamples=200)


@pytest.fixture
def model_of(tiny_model, tiny_tokenizer):
    def made(name="base", change=0.0, seed=1):
        model = tiny_model("llama")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.add_(change * torch.randn_like(parameter))
        return LanguageModel(model, tiny_tokenizer, name=name)

    return made


@pytest.fixture
def config(tmp_path):
    return replace(CONFIG, ledger=tmp_path / "ledger.jsonl")


def test_a_model_compared_with_itself_differs_in_nothing_and_is_not_noted(model_of, config):
    found = compare(model_of(), model_of(), DOCUMENTS, config)
    assert found.scores.bits_per_byte.value == 0
    assert (found.divergence.mean, found.divergence.same_top_rate) == (0, 1)
    assert {task.difference.value for task in found.tasks} == {0}
    assert found.proxy.variants == 0
    assert not config.ledger.exists()


def test_each_part_says_what_its_own_function_says(model_of, config):
    first, second = model_of(), model_of("variant", change=0.1)
    found = compare(first, second, DOCUMENTS, config)
    assert found.scores.first.bits_per_byte == pytest.approx(score(first, DOCUMENTS).bits_per_byte)
    assert found.scores.second.bits_per_byte == pytest.approx(score(second, DOCUMENTS).bits_per_byte)
    assert found.divergence.tokens == found.scores.first.tokens
    assert [task.name for task in found.tasks] == [MEAN, "last-word", "continuation"]
    assert found.footprints[0].parameters == sum(parameter.numel() for parameter in first.model.parameters())
    assert found.footprints[0].weight_bytes >= 4 * found.footprints[0].parameters
    assert found.footprints[0].disk_bytes is None
    for passage in found.scores.worst_passages:
        (document,) = (document for document in DOCUMENTS if document.name == passage.document)
        assert passage.text == document.text[passage.start : passage.end]


def test_the_verdict_is_over_all_variants_of_one_base_on_one_text(model_of, config):
    for number, change in enumerate((0.05, 0.1, 0.2)):
        found = compare(model_of(), model_of(f"variant {number}", change), DOCUMENTS, config)
        assert found.proxy.variants == number + 1
    assert [agreement.score for agreement in found.proxy.agreements] == [MEAN, "last-word", "continuation"]
    again = compare(model_of(), model_of("variant 1, renamed", 0.1), DOCUMENTS[::-1], config)
    assert again.proxy.variants == 3
    elsewhere = compare(model_of(), model_of("variant 0", 0.05), DOCUMENTS[:5], config)
    assert elsewhere.proxy.variants == 1
    other_base = compare(model_of("other base", 0.3), model_of("variant 0", 0.05), DOCUMENTS, config)
    assert other_base.proxy.variants == 1


def test_without_tasks_nothing_is_judged_or_noted(model_of, config):
    found = compare(model_of(), model_of("variant", 0.1), DOCUMENTS, replace(config, tasks=False))
    assert (list(found.tasks), found.proxy) == ([], None)
    assert not config.ledger.exists()


def test_models_with_other_vocabularies_are_compared_all_the_same(model_of, config):
    second = model_of("padded")
    second.model.resize_token_embeddings(128)
    found = compare(model_of(), second, DOCUMENTS, replace(config, tasks=False))
    assert found.divergence is None
    assert "101 ids and padded over 128" in found.vocabulary_difference
    assert math.isfinite(found.scores.bits_per_byte.value)


def test_everything_is_told_as_json(model_of, config):
    found = compare(model_of(), model_of("variant", 0.1), DOCUMENTS, config)
    record = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert record["scores"]["bits_per_byte"]["value"] == found.scores.bits_per_byte.value
    assert [row["name"] for row in record["scores"]["documents"]] == [document.name for document in DOCUMENTS]
    assert record["tasks"][0]["name"] == MEAN
    assert record["proxy"]["variants"] == 1


def test_progress_reaches_the_end_of_each_part(model_of, config):
    told = {}
    compare(
        model_of(), model_of("variant", 0.1), DOCUMENTS, config, watch=lambda what, *done: told.update({what: done})
    )
    assert {"scoring base", "scoring variant", "divergence", "base: last-word", "variant: continuation"} <= told.keys()
    assert all(done == total for done, total in told.values())


def test_too_few_documents_and_a_damaged_ledger_are_refused_before_any_work(model_of, config):
    with pytest.raises(PerplabError, match="1 document"):
        compare(model_of(), model_of(), DOCUMENTS[:1], config, watch=pytest.fail)
    config.ledger.write_text("{}\n")
    with pytest.raises(PerplabError, match=r"ledger\.jsonl line 1 is no comparison"):
        compare(model_of(), model_of(), DOCUMENTS, config, watch=pytest.fail)


@pytest.mark.parametrize("setting", [{"limit": 0}, {"rounds": 0}, {"resamples": 9}, {"level": 95}, {"passages": -1}])
def test_settings_that_cannot_be_meant_are_refused(setting):
    with pytest.raises(PerplabError, match=next(iter(setting))):
        CompareConfig(**setting)


def results(*correct):
    """A result a list of right and wrong answers, two items a document."""
    return [
        TaskResult(
            f"task {number}",
            tuple(TaskItem("", ("a", "b"), i % 2, f"d{i // 2}") for i in range(len(row))),
            np.array(row),
        )
        for number, row in enumerate(correct)
    ]


def test_tasks_are_paired_by_item_and_resampled_by_document():
    first, second = results([True, False] * 4, [True] * 4), results([True] * 8, [True, True, False, False])
    mean, task, other = compare_tasks(first, second, resamples=500)
    assert (task.first, task.second, task.difference.value) == (0.5, 1.0, 0.5)
    assert task.difference == bootstrap_paired([1] * 4, [2] * 4, [2] * 4, resamples=500)
    assert (other.first, other.second) == (1.0, 0.5)
    assert (mean.items, mean.first, mean.second) == (12, 0.75, 0.75)
    assert mean.difference.value == pytest.approx(0)


def test_items_of_one_document_give_a_difference_without_interval():
    mean, task = compare_tasks(results([True, False]), results([True, True]))
    assert (mean.difference, task.difference) == (None, None)
    assert (task.first, task.second) == (0.5, 1.0)


DIFFERENCE = PairedDifference(0.5, Interval(0.25, 0.75, 0.95), 0.01)
KEY = ComparisonKey("base", "text", {"limit": 8, "tasks": ("a",)})


def test_what_is_noted_comes_back(tmp_path):
    outcome = VariantOutcome("variant", DIFFERENCE, {"a": DIFFERENCE})
    Ledger(tmp_path / "new folder" / "ledger.jsonl").add(KEY, "weights", outcome)
    ledger = Ledger(tmp_path / "new folder" / "ledger.jsonl")
    assert ledger.outcomes(KEY) == [outcome]
    assert ledger.outcomes(replace(KEY, base="other")) == []
    ledger.add(KEY, "weights", replace(outcome, name="again"))
    assert [known.name for known in ledger.outcomes(KEY)] == ["again"]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    def add(number):
        Ledger(tmp_path / "ledger.jsonl").add(KEY, f"weights {number}", VariantOutcome(str(number), DIFFERENCE, {}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    names = {outcome.name for outcome in Ledger(tmp_path / "ledger.jsonl").outcomes(KEY)}
    assert names == {str(number) for number in range(24)}


def test_the_ledger_lies_in_the_cache_folder_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path))
    assert Ledger().path == tmp_path / "comparisons.jsonl"


def test_a_text_is_known_by_its_documents_in_any_order():
    assert text_fingerprint(DOCUMENTS) == text_fingerprint(DOCUMENTS[::-1])
    assert text_fingerprint(DOCUMENTS) != text_fingerprint(DOCUMENTS[1:])
    assert text_fingerprint(DOCUMENTS) != text_fingerprint([*DOCUMENTS[1:], replace(DOCUMENTS[0], text="other")])


def test_peak_memory_is_what_a_call_took_beyond_what_was_held():
    held = np.ones(40 * 2**20, dtype=np.uint8)
    result, peak = with_peak_memory(lambda: int(np.ones(100 * 2**20, dtype=np.uint8).sum()), torch.device("cpu"))
    assert result == 100 * 2**20
    assert len(held) == 40 * 2**20
    if peak is not None:  # where the system tells
        assert 95 * 2**20 < peak < 130 * 2**20


def test_models_are_timed_on_the_same_beginning_of_the_text(model_of):
    long = [Document("a b " * 10_000, "prose", "long"), Document("unread", "prose", "after")]
    first, second = time_in_turn((model_of(), model_of()), long, rounds=1)
    assert first.tokens == second.tokens == 16_384
    assert min(first.seconds, second.seconds) > 0


@pytest.fixture
def saved(model_of, tmp_path):
    def at(name, change):
        model_of(name, change).save(tmp_path / name)
        return str(tmp_path / name)

    text = tmp_path / "text"
    text.mkdir()
    for document in DOCUMENTS:
        (text / f"{document.name}.txt").write_text(document.text)
    return at("base", 0.0), at("variant", 0.2), str(text)


def test_the_command_prints_the_verdict_first(saved, config, capsys):
    first, second, text = saved
    compare_command(first, second, corpus=text, split="all", config=config)
    printed = capsys.readouterr().out
    assert printed.startswith(("B costs ", "B and A cost the same within noise"))
    for part in ("domain", "kind of token", "Where B loses most", "KL(A || B)", MEAN, "on disk", "1 variant of A"):
        assert part in printed


def test_the_command_prints_one_json_object(saved, config, capsys):
    first, second, text = saved
    compare_command(first, second, corpus=text, split="all", config=config, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["first"], record["second"], record["corpus"]) == (first, second, text)
    assert record["footprints"][0]["disk_bytes"] > 4 * record["footprints"][0]["parameters"]
