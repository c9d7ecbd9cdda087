"""Run logs: what is read, what is refused, and the layout of the published results."""

import json

import numpy as np
import pytest

from perplab.errors import PerplabError
from perplab.laws import LawWarning, Run, Runs, read_runs, read_testbed
from perplab.laws.testbed import SUITE

ROW = {"params": 1000, "tokens": 20_000, "loss": 3.5}


def write_csv(path, *rows):
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_csv_and_json_lines_say_the_same(tmp_path):
    rows = [ROW | {"error": 0.7, "seed": 0, "note": "x"}, ROW | {"loss": 3.6, "error": 0.8, "seed": 1, "note": "y"}]
    from_csv = read_runs(write_csv(tmp_path / "runs.csv", *rows))
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    from_jsonl = read_runs(tmp_path / "runs.jsonl")
    assert (
        list(from_csv)
        == list(from_jsonl)
        == [Run(**ROW, error=0.7, seed=0), Run(**ROW | {"loss": 3.6}, error=0.8, seed=1)]
    )
    assert from_csv.loss.tolist() == [3.5, 3.6]
    assert from_csv.multiplier.tolist() == [20, 20]
    assert from_csv.compute.tolist() == [6 * 1000 * 20_000] * 2


def test_a_multiplier_may_stand_for_tokens_and_numbers_may_be_written_short(tmp_path):
    (tmp_path / "runs.csv").write_text("params,multiplier,loss,error\n1.5e9,20,2.5,\n")
    assert list(read_runs(tmp_path / "runs.csv")) == [Run(params=1_500_000_000, tokens=30_000_000_000, loss=2.5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": "nan"}, "loss is nan"),
        ({"loss": "inf"}, "loss is inf"),
        ({"loss": "low"}, "loss is 'low'"),
        ({"params": 0}, "params is 0"),
        ({"params": -5}, "params is -5"),
        ({"tokens": "nan"}, "tokens is nan"),
        ({"tokens": ""}, "no tokens"),
        ({"error": 40}, "error is 40"),
        ({"params_no_embed": 1001}, "params_no_embed is 1001 where params is 1000"),
        ({"scheduled_tokens": 40_000}, "tokens is 30000 where the schedule ends at 40000"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_value(change, words, tmp_path):
    empty = dict.fromkeys(change, "")
    path = write_csv(tmp_path / "runs.csv", empty | ROW, empty | ROW | {"tokens": 30_000} | change)
    with pytest.raises(PerplabError) as refused:
        read_runs(path)
    assert f"{path} line 3" in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("runs.csv", "", "holds no runs"),
        ("runs.csv", "params,tokens,loss\n", "holds no runs"),
        ("runs.csv", 'params,tokens,loss\n1,2,"3\n', "line 2 is not CSV"),
        ("runs.jsonl", '{"params": 1}\n', "line 1: no tokens"),
        ("runs.jsonl", '{"params": 1, "tokens": 2, "loss": 3}\n{"para', "line 2 is not JSON"),
        ("runs.jsonl", "[1, 2, 3]\n", "line 1 is '[1, 2, 3]'"),
        ("runs.parquet", "", "not a run log"),
    ],
)
def test_a_file_that_is_no_run_log_is_named(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(PerplabError) as refused:
        read_runs(tmp_path / name)
    assert name in str(refused.value)
    assert words in str(refused.value)


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(PerplabError, match=r"nowhere\.csv"):
        read_runs(tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"params,tokens,loss,corpus\n1,2,3,caf\xe9\n")
    with pytest.raises(PerplabError, match=r"latin\.csv is not UTF-8"):
        read_runs(tmp_path / "latin.csv")


def test_one_point_with_two_losses_needs_seeds():
    twice = [Run(**ROW), Run(**ROW | {"loss": 3.6})]
    with pytest.raises(PerplabError, match=r"losses 3\.5 and 3\.6 for 1000 parameters and 20000 tokens"):
        Runs(twice)
    assert len(Runs([Run(**ROW, seed=0), Run(**ROW | {"loss": 3.6}, seed=1)])) == 2
    assert len(Runs([Run(**ROW, corpus="a"), Run(**ROW | {"loss": 3.6}, corpus="b")])) == 2


def test_losses_of_two_tokenizers_are_not_mixed():
    with pytest.raises(PerplabError, match="tokenizers 'gpt2', 'llama'"):
        Runs([Run(**ROW, tokenizer="gpt2"), Run(**ROW | {"tokens": 9}, tokenizer="llama")])


def test_more_than_one_epoch_is_a_warning():
    Runs([Run(**ROW, corpus_tokens=20_000)])
    with pytest.warns(LawWarning, match="20000 tokens are over one epoch of 19999"):
        Runs([Run(**ROW, corpus_tokens=19_999)])


def test_an_error_column_is_whole_or_refused():
    runs = Runs([Run(**ROW, error=0.5), Run(**ROW | {"tokens": 9})])
    assert runs[:1].error.tolist() == [0.5]
    with pytest.raises(PerplabError, match="no error"):
        _ = runs.error


def test_a_model_counts_its_own_parameters(tiny_model):
    model = tiny_model("llama")
    run = Run.of_model(model, tokens=100, loss=3.0)
    embeddings = model.get_input_embeddings().weight.numel()
    assert run.params == sum(parameter.numel() for parameter in model.parameters())
    assert run.params_no_embed == run.params - embeddings


@pytest.fixture(params=["folders", "flattened"])
def layout(request, tmp_path):
    """Two published runs in either layout."""
    names = {"rpj-d=96_l=8_h=4-1.0": ("rpj", 1.0, 5.3), "c4_original-open_lm_1b-4.0": ("c4_original", 4.0, 2.4)}
    for name, (dataset, multiplier, loss) in names.items():
        model = {
            "dataset_name": dataset,
            "hyperparameters": {
                "params": 1000,
                "params_no_embed": 600,
                "chinchilla_multiplier": multiplier,
                "tokens": 1,
            },
            "results": [
                {"val_data": ["eval/c4_val/shard-0.tar"], "loss": loss},
                {"val_data": ["eval/val_tok_mult/paloma_c4_en/1.tar"], "loss": loss + 1},
            ],
        }
        accuracies = dict.fromkeys(SUITE, 0.25) | {"copa": 0.5, "mmlu": 1.0}
        files = {f"models/{name}.json": model}
        files[f"evals/evaluation_{name}_heavy.json"] = {"eval_metrics": {"icl": accuracies}}
        for path, content in files.items():
            target = tmp_path / (path if request.param == "folders" else path.replace("/", "__"))
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(content))
    return tmp_path


def test_published_runs_are_read_from_either_layout(layout):
    c4, redpajama = read_runs(layout)
    assert (c4.corpus, redpajama.corpus) == ("C4", "RedPajama")
    assert (c4.loss, redpajama.loss) == (2.4, 5.3)
    assert (c4.multiplier, redpajama.multiplier) == (80, 20)  # the files state units of 20 tokens per parameter
    assert (c4.params, c4.params_no_embed) == (1000, 600)
    assert c4.error == pytest.approx(1 - (16 * 0.25 + 0.5) / 17)


def test_another_evaluation_and_all_tasks_can_be_asked_for(layout):
    assert read_testbed(layout, evaluation="paloma_c4_en").loss.tolist() == [3.4, 6.3]
    assert read_testbed(layout, tasks=None).error == pytest.approx([1 - (16 * 0.25 + 0.5 + 1) / 18] * 2)
    with pytest.raises(PerplabError, match="evaluated on 'wikitext'"):
        read_testbed(layout, evaluation="wikitext")


def test_an_incomplete_folder_is_named(layout):
    evaluation = next(path for path in layout.rglob("*heavy.json") if "rpj" in path.name)
    evaluation.unlink()
    with pytest.raises(PerplabError, match=r"lacks evaluation_rpj-d=96_l=8_h=4-1\.0_heavy\.json"):
        read_runs(layout)
    (layout / "empty").mkdir()
    with pytest.raises(PerplabError, match="empty has no published runs"):
        read_runs(layout / "empty")


def test_columns_are_floats_whatever_was_given():
    assert Runs([Run(**ROW)]).params.dtype == np.float64
