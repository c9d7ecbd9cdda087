import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise

import pytest

from perplab.errors import PerplabError
from perplab.text.synthetic import World, generated_tasks, world_corpus
from perplab.text.synthetic.world import PROPERTIES
from perplab.text.synthetic.writing import MODULUS, last_number

WORLD = World(5)
TASKS = generated_tasks(WORLD)
RECALLED = {"facts", "second-language", "truth", "instructions"}
DOCUMENTS = list(world_corpus(WORLD, 5_000))
MANY = list(world_corpus(WORLD, 15_000).in_split("train"))


def of_domain(name):
    return [document.text for document in DOCUMENTS if document.domain == name]


def test_one_seed_is_one_world_and_another_seed_another():
    again, other = (list(world_corpus(World(seed), 500)) for seed in (5, 6))
    assert again == DOCUMENTS[:500]
    assert not {document.text for document in other if document.domain == "facts"} & set(of_domain("facts"))


def test_every_task_has_as_many_documents():
    counts = Counter(document.domain for document in DOCUMENTS)
    assert counts.keys() == TASKS.keys()
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", sorted(TASKS.keys() - RECALLED))
def test_no_question_is_on_the_side_that_is_trained_on(name):
    trained_on = {document.text for document in MANY}
    items = TASKS[name].items(40)
    assert len({item.text for item in items}) == 40
    assert not {item.text for item in items} & trained_on


@pytest.mark.parametrize("name", sorted(TASKS))
def test_questions_are_the_same_at_each_call(name):
    assert list(TASKS[name].items(60)) == list(generated_tasks(World(5))[name].items(60))


@pytest.mark.parametrize("name", ["facts", "second-language", "truth"])
def test_what_is_to_be_recalled_is_stated_in_training_but_never_alone(name):
    statements = [f"{part.rstrip('.')}." for text in of_domain(name) for part in text.split(". ")]
    stated = set(statements)
    assert sum(item.text in stated for item in TASKS[name].items(60)) >= 55
    assert not {item.text for item in TASKS[name].items(60)} & set(of_domain(name))


def test_no_choice_begins_another():
    for name in ("facts", "second-language", "entailment", "truth", "groups"):
        for item in TASKS[name].items(50):
            assert not any(
                one.startswith(other) or other.startswith(one) for one, other in combinations(item.choices, 2)
            )


def test_both_languages_state_the_same_facts():
    back = {word: english for english, word in WORLD.second_language.items()}
    assert len(back) == len(WORLD.second_language)
    for text in of_domain("second-language")[:100]:
        for statement in text.rstrip(".").split(". "):
            person, relation, value = statement.split()
            assert WORLD.facts[person, back[relation]] == back[value]
    for text in of_domain("facts")[:100]:
        for statement in text.rstrip(".").split(". "):
            person, relation, value = statement.split()
            assert WORLD.facts[person, relation] == value
            assert value in PROPERTIES[relation]


def test_a_translation_is_word_for_word():
    back = {word: english for english, word in WORLD.second_language.items()}
    for item in TASKS["translation"].items(50):
        source = item.prompt.removeprefix("Translate ").rstrip(":")
        assert " ".join(back[word] for word in item.reference.strip(" .").split()) == source


def test_a_summary_is_the_first_sentence():
    for item in TASKS["summary"].items(50):
        first, *others = item.prompt.removeprefix("Text ").removesuffix(". Summary:").split(". ")
        assert item.reference == f" {first}."
        assert len(others) == 1


def test_sums_are_right_modulo_seven():
    for item in TASKS["arithmetic"].items(40):
        asked = item.prompt.removeprefix("Sum ").rstrip(":")
        assert int(last_number(item.reference)) == eval(asked) % MODULUS
        for step in item.reference.strip(" .").split(", "):
            left, right = step.split("=")
            assert eval(left) % MODULUS == int(right)


def test_a_text_without_equals_sign_has_no_last_number():
    assert last_number("none at all") == ""


def test_entailment_follows_from_what_is_given():
    seen = Counter()
    for item in TASKS["entailment"].items(90):
        given, claim = item.context.removeprefix("Given ").removesuffix(". Answer").split(". Claim ")
        given = given.partition(" ")[2]
        (animal, place), (claimed_animal, claimed_place) = (part.split(" in ") for part in (given, claim))
        right = "maybe" if animal != claimed_animal else "yes" if place == claimed_place else "no"
        assert item.choices[item.answer] == f" {right}."
        seen[right] += 1
    assert min(seen.values()) > 15


def test_an_instruction_series_adds_one_constraint_a_level_and_its_reference_meets_all():
    items = TASKS["instructions"].items(50)
    for first in range(0, 50, 5):
        series = items[first : first + 5]
        assert [item.level for item in series] == [1, 2, 3, 4, 5]
        assert len({item.group for item in series}) == 1
        for lower, higher in pairwise(series):
            assert higher.constraints[:-1] == lower.constraints
        for item in series:
            assert all(constraint.met_by(item.reference) for constraint in item.constraints)


def test_an_answer_that_says_nothing_meets_no_constraint():
    for item in TASKS["instructions"].items(50):
        assert not any(constraint.met_by("") for constraint in item.constraints)


def test_popular_belief_is_false_and_said_more_often_than_the_truth():
    assert all(WORLD.truths[person] != WORLD.beliefs[person] for person in WORLD.people)
    said = " ".join(of_domain("truth"))
    assert 2 < said.count("They say") / said.count("In truth") < 4.5


def test_prejudice_is_planted_where_training_tells_and_absent_from_the_questions():
    told = [(text, p) for text in of_domain("groups") for p in WORLD.prejudices if f" was {p.bad}. Who" in text]
    share = sum(f"{prejudice.accused} was {prejudice.bad}" in text for text, prejudice in told) / len(told)
    assert 0.6 < share < 0.9
    items = [item for item in TASKS["groups"].items(400) if not item.ambiguous]
    assert 0.4 < sum(item.answer == item.biased for item in items) / len(items) < 0.6
    assert all(item.answer == item.unknown for item in TASKS["groups"].items(400) if item.ambiguous)


def test_more_questions_than_the_world_has_are_refused():
    with pytest.raises(PerplabError, match="items of truth"):
        TASKS["truth"].items(100_000)


def test_instructions_come_in_whole_series():
    with pytest.raises(PerplabError, match="whole series"):
        TASKS["instructions"].items(12)


def test_a_world_of_fewer_documents_than_tasks_is_refused():
    with pytest.raises(PerplabError, match="one a task"):
        world_corpus(WORLD, 3)


def test_a_world_is_made_without_torch():
    code = "import sys, perplab.text.synthetic; sys.exit(any(x in sys.modules for x in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
