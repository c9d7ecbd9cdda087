"""`perplab evaluate`."""

import inspect
import json
import sys
from pathlib import Path

import pytest

from perplab.cli import main
from perplab.evaluation import TASKS

CODE = ["ast", "argparse", "bdb", "calendar", "cmd", "codeop", "configparser", "copy", "csv", "dis"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of Python files."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in CODE:
        source = Path(inspect.__file__).with_name(f"{name}.py")
        (folder / f"{name}.py").write_bytes(source.read_bytes())
    return folder


@pytest.fixture
def run(capsys):
    """`run(*arguments)` is the status, standard output and standard error of the command."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *map(str, arguments)])
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def refuses(run):
    def refuses(arguments, *words):
        status, output, errors = run(*arguments)
        assert (status, output) == (2, "")
        (line,) = [line for line in errors.splitlines() if line.startswith("perplab: ")]
        assert errors.endswith(line + "\n")
        for word in words:
            assert word in line

    return refuses


def test_figures_have_chance_and_interval_in_the_table_and_as_json(run, corpus):
    options = ("--corpus", corpus, "--split", "all", "--limit", 6, "--tasks", "brackets,identifiers")
    status, output, _ = run(*options, "--json")
    assert status == 0
    found = json.loads(output)
    assert [row["task"] for row in found["results"]] == ["brackets", "identifiers"]
    for row in found["results"]:
        assert row["items"] == 6
        assert 0 <= row["interval"][0] <= row["value"] <= row["interval"][1] <= 1
    assert [row["chance"] for row in found["results"]] == [pytest.approx(1 / 3), 0.25]
    status, output, _ = run(*options)
    assert status == 0
    for word in ("brackets", "identifiers", "0.333", "0.250", "95 % interval"):
        assert word in output


def test_a_task_of_the_harness_runs_from_its_folder(run, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": f"{n} + 1 =", "choices": [str(n + k) for k in range(5)], "answer": 1} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "successors",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    pages = {
        **{key: task[key] for key in ("dataset_path", "dataset_kwargs", "test_split")},
        "task": "pages",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    (tmp_path / "successors.yaml").write_text(json.dumps(task))
    (tmp_path / "pages.yaml").write_text(json.dumps(pages))
    status, output, _ = run(
        *("--tasks", "successors,pages", "--include-path", tmp_path, "--limit", 5, "--num-fewshot", 2, "--json")
    )
    assert status == 0
    rows = {row["metric"]: row for row in json.loads(output)["results"]}
    assert {metric: row["task"] for metric, row in rows.items()} == {
        "acc": "successors",
        "word_perplexity": "pages",
        "bits_per_byte": "pages",
    }
    assert (rows["acc"]["items"], rows["acc"]["chance"], rows["bits_per_byte"]["chance"]) == (5, 0.2, None)
    for row in rows.values():
        assert row["interval"][0] <= row["value"] <= row["interval"][1]


def test_without_the_harness_its_tasks_are_refused_with_the_mend(refuses, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refuses(["--tasks", "hellaswag"], "hellaswag", "not installed", "pip install 'perplab[evaluate]'")


def test_what_cannot_be_run_is_named_in_one_line(refuses, corpus, tmp_path):
    refuses(["--tasks", ","], "no task", *TASKS)
    refuses(["--limit", "0"], "limit of 0")
    refuses(["--tasks", "mine", "--limit", "0"], "limit of 0")
    refuses(["--tasks", "mine", "--num-fewshot", "-1"], "-1 solved examples")
    prose = tmp_path / "prose.txt"
    prose.write_text("Nothing but a short text. " * 40)
    refuses(["--corpus", prose, "--split", "all", "--tasks", "brackets"], "no item for brackets")
    refuses(["no/such/model"], "no/such/model")


def test_a_folder_of_tasks_that_does_not_exist_is_named(refuses, tmp_path):
    pytest.importorskip("lm_eval")
    refuses(["--tasks", "mine", "--include-path", tmp_path / "nowhere"], "nowhere", "YAML")


@pytest.mark.slow
def test_tasks_that_are_unknown_or_whose_data_are_not_here_are_refused_offline(refuses):
    """Reading the harness's own list of tasks takes many seconds."""
    pytest.importorskip("lm_eval")
    refuses(["--tasks", "no_such_task"], "no_such_task", "--include-path")
    refuses(["--tasks", "lambada_openai"], "lambada_openai", "offline")
