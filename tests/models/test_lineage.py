import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from perplab.errors import PerplabError
from perplab.models.lineage import Lineage, Parent, weights_fingerprint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


def chain(*verbs):
    lineage = None
    for verb in verbs:
        parent = Parent(name="before", fingerprint="ab", lineage=lineage) if lineage else None
        lineage = Lineage.record(verb, parent=parent)
    return lineage


def corrupt(folder, change):
    path = folder / "perplab.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@settings(max_examples=30)
@given(config=st.dictionaries(st.text(), JSON), seed=st.none() | st.integers())
def test_lineage_read_back_equals_the_one_written(tmp_path_factory, config, seed):
    folder = tmp_path_factory.getbasetemp()
    parent = Parent(name="p", lineage=chain("train"))
    lineage = Lineage.record("quantize", config=config, seed=seed, parent=parent, figures={"perplexity": 3.5})
    lineage.write(folder)
    assert Lineage.read(folder) == lineage


def test_values_json_does_not_know_are_recorded_by_name():
    lineage = Lineage.record("train", config={"out": Path("runs/a"), "dtype": torch.bfloat16, "betas": (0.9, 0.95)})
    assert lineage.config == {"out": "runs/a", "dtype": "torch.bfloat16", "betas": [0.9, 0.95]}


def test_record_says_when_where_and_with_what():
    lineage = Lineage.record("train")
    assert lineage.versions["torch"] == torch.__version__
    assert lineage.machine.cores >= 1
    assert lineage.machine.cpu
    assert lineage.created.endswith("+00:00")


def test_history_runs_from_the_first_ancestor_to_the_model_itself(tmp_path):
    chain("train", "fuse", "quantize").write(tmp_path)
    assert [step.verb for step in Lineage.read(tmp_path).history] == ["train", "fuse", "quantize"]


def test_folder_without_the_file_has_no_lineage(tmp_path):
    assert Lineage.read(tmp_path) is None


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("", lambda content: content.update(bogus=1)),
        (" under machine", lambda content: content["machine"].update(bogus=1)),
        (" under parent", lambda content: content["parent"].update(bogus=1)),
        (" under parent.lineage", lambda content: content["parent"]["lineage"].update(bogus=1)),
    ],
)
def test_unknown_key_is_named_with_its_place(tmp_path, where, change):
    chain("train", "fuse").write(tmp_path)
    corrupt(tmp_path, change)
    with pytest.raises(PerplabError, match=rf"perplab\.json{where} has the unknown key 'bogus'"):
        Lineage.read(tmp_path)


def test_missing_key_is_named(tmp_path):
    chain("train").write(tmp_path)
    corrupt(tmp_path, lambda content: content.pop("verb"))
    with pytest.raises(PerplabError, match=r"perplab\.json lacks the key 'verb'"):
        Lineage.read(tmp_path)


@pytest.mark.parametrize("content", ["[1, 2]", "not json", '{"verb": '])
def test_file_that_holds_no_lineage_is_named(tmp_path, content):
    (tmp_path / "perplab.json").write_text(content)
    with pytest.raises(PerplabError, match=r"perplab\.json"):
        Lineage.read(tmp_path)


def test_fingerprint_is_the_digest_of_the_files_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        save_file({name: torch.zeros(300_000)}, tmp_path / f"{name}.safetensors")  # more than one block
    (tmp_path / "config.json").write_text("{}")
    content = b"".join((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert weights_fingerprint(tmp_path) == hashlib.sha256(content).hexdigest()


def test_fingerprint_changes_with_one_bit_of_one_weight(tmp_path):
    save_file({"w": torch.zeros(4)}, tmp_path / "model.safetensors")
    before = weights_fingerprint(tmp_path)
    save_file({"w": torch.tensor([0.0, -0.0, 0.0, 0.0])}, tmp_path / "model.safetensors")
    assert weights_fingerprint(tmp_path) != before


def test_folder_without_weights_has_no_fingerprint(tmp_path):
    with pytest.raises(PerplabError, match="no safetensors file"):
        weights_fingerprint(tmp_path)
