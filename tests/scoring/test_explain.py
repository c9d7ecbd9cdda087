"""Differences between conventions, attributed facet by facet."""

import itertools
import json
import math
from dataclasses import replace

import pytest

from perplab.commands.explain import explain as explain_command
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.conventions import CONVENTIONS
from perplab.scoring.explain import FACETS, explain
from perplab.scoring.perplexity import perplexity
from perplab.text import Document

PAIRS = list(itertools.combinations(CONVENTIONS, 2))


@pytest.fixture
def language_model(tiny_model, tiny_tokenizer):
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    model.model.config.max_position_embeddings = 16
    return model


@pytest.fixture(scope="module")
def documents():
    """Short ones, of which no window of 16 is full, and a longer one."""
    texts = ["the cat", "sat\n", "on the mat and saw the rat that ran", "x = f(y)", "a b"]
    return [Document(text, "d", str(number)) for number, text in enumerate(texts)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_steps_add_up_to_the_difference_of_the_two_numbers(language_model, documents, first, second):
    found = explain(language_model, documents, first, second)
    ends = [perplexity(language_model, documents, convention=name).value for name in (first, second)]
    assert (found.first_number, found.second_number) == pytest.approx(ends)
    assert sum(step.log_change for step in found.steps) == pytest.approx(math.log(ends[1]) - math.log(ends[0]))
    assert found.log_change == pytest.approx(math.log(ends[1] / ends[0]))
    assert math.prod(step.factor for step in found.steps) == pytest.approx(ends[1] / ends[0])
    assert sorted(step.facet for step in found.steps) == sorted(FACETS)
    assert found.steps[-1].number == found.second_number


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_way_back_is_the_same_way(language_model, documents, first, second):
    there = explain(language_model, documents, first, second)
    back = explain(language_model, documents, second, first)
    changes = {step.facet: (step.before, step.after, step.log_change) for step in there.steps}
    assert changes == {step.facet: (step.after, step.before, -step.log_change) for step in back.steps}


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_facet_that_both_share_changes_nothing(language_model, documents, first, second):
    for step in explain(language_model, documents, first, second).steps:
        if step.before == step.after:
            assert step.log_change == 0


def test_a_difference_in_one_facet_is_attributed_to_it_alone(language_model, documents):
    whole = CONVENTIONS["llamacpp"]
    found = explain(language_model, documents, replace(whole, name="all of it", scored_tokens="all"), whole)
    changed = [step for step in found.steps if step.log_change]
    assert [step.facet for step in changed] == ["scored tokens"]
    assert changed[0].log_change == pytest.approx(found.log_change)


def test_a_window_belongs_to_the_facet_of_windows(language_model, documents):
    shorter = replace(CONVENTIONS["perplab"], name="shorter", window=4)
    found = explain(language_model, documents, "perplab", shorter)
    assert [step.facet for step in found.steps if step.log_change] == ["windows"]
    (windows,) = (step for step in found.steps if step.facet == "windows")
    assert windows.before.startswith("16 tokens, every 8")
    assert windows.after.startswith("4 tokens, every 2")


def test_documents_read_from_an_iterator_serve_every_step(language_model, documents):
    once = explain(language_model, iter(documents), "lm-eval", "gptq")
    assert once == explain(language_model, documents, "lm-eval", "gptq")


def test_whoever_waits_is_told_of_every_number(language_model, documents):
    told = []
    explain(language_model, documents, "lm-eval", "gptq", on_number=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat.\n" * 40)
    return str(path)


def test_the_command_prints_numbers_that_add_up(corpus, capsys):
    explain_command("lm-eval", "llamacpp", corpus=corpus, window=64, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    total = math.log(printed["second_number"]) - math.log(printed["first_number"])
    assert sum(step["log_change"] for step in printed["steps"]) == pytest.approx(total)
    assert printed["log_change"] == pytest.approx(total)
    assert [step["facet"] for step in printed["steps"]] == list(FACETS)


def test_the_command_prints_a_table(corpus, capsys):
    explain_command("perplab", "hf-stride", corpus=corpus, window=64, stride=32)
    printed = capsys.readouterr().out
    assert all(facet.split()[0] in printed for facet in FACETS)
    assert "hf-stride" in printed


def test_a_stride_that_serves_neither_convention_is_refused(corpus):
    with pytest.raises(PerplabError, match="stride of 3, where the windows of lm-eval and llamacpp do not overlap"):
        explain_command("lm-eval", "llamacpp", corpus=corpus, stride=3)


def test_a_text_too_short_for_one_of_them_is_refused(language_model):
    with pytest.raises(PerplabError, match="too short"):
        explain(language_model, "abc", "perplab", "llamacpp")
