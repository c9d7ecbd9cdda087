"""The built-in tasks: what they ask, and what guessing and knowing get."""

import inspect
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from perplab.errors import PerplabError
from perplab.evaluation import TASKS, EvaluateConfig, evaluate, suite
from perplab.evaluation.code_tokens import CLOSING, code_tokens
from perplab.evaluation.items import CONTEXT_CHARACTERS, drawn_distractors, generator_for, passage_before
from perplab.models import LanguageModel, load
from perplab.scoring.choices import ChoiceCosts
from perplab.text import Document


@pytest.fixture(scope="module")
def documents():
    """Python, C++ and prose that every installation has."""
    modules = sorted(Path(inspect.__file__).parent.glob("*.py"))[::5]
    headers = sorted(Path(np.get_include()).rglob("*.h"))
    return [
        *(Document(module.read_text(encoding="utf-8"), "python", str(module)) for module in modules),
        *(Document(header.read_text(encoding="utf-8"), "cpp", str(header)) for header in headers),
        *(Document(text, "reference", f"topics#{number}") for number, text in enumerate(topics.values())),
    ]


@pytest.fixture(scope="module")
def items(documents):
    return {name: list(task.items(documents, seed=0)) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def tokens(documents):
    return {document.name: code_tokens(document) for document in documents}


_SURELY = 5
"""Standard errors that chance does not pass: the texts, and with them every draw, differ between installations."""

every_task = pytest.mark.parametrize("task", TASKS)


@every_task
def test_the_answer_is_what_came_and_no_other_choice_is(task, items, documents):
    texts = {document.name: document.text for document in documents}
    assert len(items[task]) > 100
    for item in items[task]:
        assert item.context + item.choices[item.answer] in texts[item.document]
        assert len(set(item.choices)) == len(item.choices)
        assert len(item.context) <= CONTEXT_CHARACTERS


@every_task
def test_the_same_seed_gives_the_same_items_and_another_seed_others(task, documents):
    first, same, other = (list(TASKS[task].items(documents[::3], seed)) for seed in (0, 0, 1))
    assert first == same != other


@every_task
def test_answers_stand_at_every_place_alike(task, items):
    places = Counter(item.answer for item in items[task])
    assert chisquare([places[place] for place in range(len(items[task][0].choices))]).pvalue > 1e-6


@pytest.mark.parametrize("task", ["last-word", "brackets", "identifiers"])
def test_no_choice_begins_another(task, items):
    for item in items[task]:
        starts = [sum(other.startswith(choice) for other in item.choices) for choice in item.choices]
        assert starts == [1] * len(starts)


@pytest.mark.parametrize("task", ["last-word", "identifiers"])
def test_a_larger_corpus_changes_no_item_of_a_document(task, items, documents):
    chosen = [document for document in documents if document.domain != "cpp"][20:50]
    few = list(TASKS[task].items(chosen, seed=0))
    assert few
    assert set(few) <= set(items[task])


def test_last_words_end_sentences_of_their_document(items, documents):
    texts = {document.name: document.text for document in documents}
    for item in items["last-word"]:
        for choice in item.choices:
            assert any(f"{choice}{stop}" in texts[item.document] for stop in ".?!")


def test_continuations_begin_with_the_same_white_space_and_are_about_as_long(items):
    for item in items["continuation"]:
        beginnings = {choice[: len(choice) - len(choice.lstrip())] for choice in item.choices}
        assert len(beginnings) == 1
        for choice in item.choices:
            without_last_word = choice[: -len(choice.split()[-1])].rstrip()
            assert len(without_last_word) < 40 <= len(choice)


def test_distractors_of_continuations_are_from_other_documents_of_the_domain(items, documents):
    domain = {document.name: document.domain for document in documents}
    for item in items["continuation"][:100]:
        for place, choice in enumerate(item.choices):
            if place != item.answer:
                same = [document.name for document in documents if document.domain == domain[item.document]]
                assert any(choice in document.text for document in documents if document.name in same)


def test_brackets_are_closed_by_the_kind_that_is_open_and_kinds_are_even(items, documents, tokens):
    texts = {document.name: document.text for document in documents}
    for item in items["brackets"]:
        place = texts[item.document].index(item.context + item.choices[item.answer]) + len(item.context)
        opened = []
        for token in tokens[item.document]:
            if token.start >= place:
                break
            if token.kind == "open":
                opened.append(token)
            elif token.kind == "close":
                opened.pop()
        assert CLOSING[opened[-1].text] == item.choices[item.answer]
        assert opened[-1].text in item.context
    kinds = Counter(item.choices[item.answer] for item in items["brackets"])
    assert set(kinds) == set(CLOSING.values())
    assert len(set(kinds.values())) == 1


def test_identifiers_are_names_that_the_passage_has_used(items, documents, tokens):
    texts = {document.name: document.text for document in documents}
    for item in items["identifiers"]:
        end = texts[item.document].index(item.context + item.choices[item.answer]) + len(item.context)
        begin = end - len(item.context)
        names = (token for token in tokens[item.document] if token.kind == "name")
        used = {name.text for name in names if begin <= name.start < end}
        assert set(item.choices) <= used


def test_passages_end_where_they_should_and_begin_with_a_line_or_a_word():
    lines = "".join(f"line {number} of the text\n" for number in range(200))
    assert passage_before(lines, 300) == lines[:300]
    passage = passage_before(lines, 3000)
    assert lines[:3000].endswith("\n" + passage)
    words = "word " * 1000
    assert passage_before(words, 4000).startswith("word ")
    assert len(passage_before("x" * 5000, 4000)) == CONTEXT_CHARACTERS


def test_distractors_are_drawn_as_often_as_they_occur():
    random = generator_for("test", 0, Document("", "", ""))
    candidates = ["often"] * 30 + [f"rare{number:02}" for number in range(30)]
    drawn = Counter(word for _ in range(500) for word in drawn_distractors("answer", candidates, random))
    assert drawn["often"] > 350
    assert max(count for word, count in drawn.items() if word != "often") < 100
    assert drawn_distractors("rare", candidates, random) == ["often"]


@pytest.fixture
def ignorant(tiny_model, tiny_tokenizer):
    """A model that gives every character the same probability."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return LanguageModel(model, tiny_tokenizer)


def test_a_model_that_knows_nothing_guesses(ignorant, documents):
    for result in evaluate(ignorant, documents, EvaluateConfig(limit=200)):
        choices = len(result.items[0].choices)
        documents_of_items, document = np.unique(result.documents, return_inverse=True)
        excess = np.bincount(document, weights=result.correct - 1 / choices)
        assert len(documents_of_items) > 10
        assert abs(excess.sum()) < _SURELY * np.sqrt((excess**2).sum()), result.name


def test_a_scorer_that_knows_the_documents_is_always_right(monkeypatch, documents):
    texts = [document.text for document in documents]

    def score(_, items):
        for context, choices in items:
            nll = np.array([0.0 if any(context + choice in text for text in texts) else 1.0 for choice in choices])
            yield ChoiceCosts(nll, np.ones(len(choices), dtype=np.int64), np.ones(len(choices), dtype=np.int64))

    monkeypatch.setattr(suite, "score_choices", score)
    for result in evaluate(None, documents, EvaluateConfig(limit=60)):
        assert result.accuracy == 1.0, result.name
        assert result.interval.high == 1.0
        assert len(result.items) == 60


def test_the_shipped_model_is_between_chance_and_certainty(documents):
    calls = []
    results = evaluate(
        load("pocket"), documents, EvaluateConfig(limit=120), watch=lambda *progress: calls.append(progress)
    )
    assert [result.name for result in results] == list(TASKS)
    for result in results:
        assert result.chance < result.interval.low, result.name
        assert result.accuracy < 1
    assert calls[:120] == [("last-word", done, 120) for done in range(1, 121)]


def test_chance_is_the_commonest_answer_where_choices_are_always_the_same(items):
    brackets = tuple(item for item in items["brackets"] if item.choices[item.answer] != "]")[:50]
    result = suite.TaskResult("brackets", brackets, np.ones(50, dtype=bool))
    assert result.chance == 0.5
    assert suite.TaskResult("continuation", tuple(items["continuation"][:9]), np.ones(9, dtype=bool)).chance == 0.25


def test_items_of_one_document_give_no_interval(items):
    first = items["identifiers"][0]
    alone = tuple(item for item in items["identifiers"] if item.document == first.document)
    assert suite.TaskResult("identifiers", alone, np.ones(len(alone), dtype=bool)).interval is None


def test_tasks_without_items_are_left_out_unless_they_are_named(ignorant):
    prose = [Document(text, "reference", f"topics#{number}") for number, text in enumerate(topics.values())]
    results = evaluate(ignorant, prose, EvaluateConfig(limit=5))
    assert [result.name for result in results] == ["last-word", "continuation"]
    with pytest.raises(PerplabError, match="no item for brackets"):
        evaluate(ignorant, prose, EvaluateConfig(tasks=("brackets",)))
    with pytest.raises(PerplabError, match="no item for any task"):
        evaluate(ignorant, [Document("too short", "x", "y")])


def test_a_large_corpus_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(suite, "MOST_DOCUMENTS", 100)
    stream = (Document(str(number), "x", str(number)) for number in range(1000))
    kept = [int(document.text) for document in suite._sampled(stream, seed=0)]
    assert len(set(kept)) == 100
    assert 400 < np.mean(kept) < 600


@pytest.mark.parametrize(
    ("bad", "word"),
    [({"tasks": ("brackets", "nonsense")}, "nonsense"), ({"tasks": ()}, "no task"), ({"limit": 0}, "0")],
)
def test_settings_that_cannot_be_meant_are_refused(bad, word):
    with pytest.raises(PerplabError, match=word):
        EvaluateConfig(**bad)
