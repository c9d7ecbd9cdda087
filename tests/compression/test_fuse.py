"""`fuse` and `perplab fuse`: from a model and a text to a folder that everything else loads."""

import json
import string

import pytest
import torch
from deeper_models import deeper
from transformers import AutoModelForCausalLM

from perplab.commands.fuse import fuse as fuse_command
from perplab.compression.fusion.config import FuseConfig
from perplab.compression.fusion.fuse import fuse
from perplab.compression.fusion.methods import METHODS
from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.text import Document

TEXT = (string.printable * 12)[:1000]
SETTINGS = {
    "rate": 0.5,
    "windows": 6,
    "scored_windows": 4,
    "length": 16,
    "batch": 3,
    "epochs": 1,
    "rank": 2,
    "group": 2,
}


@pytest.fixture
def documents():
    return [Document(TEXT, "text", "text")]


@pytest.fixture
def dense(tiny_model, tiny_tokenizer, tmp_path):
    """A model of four blocks, on disk."""
    LanguageModel(deeper(tiny_model("llama"), 4), tiny_tokenizer).save(tmp_path / "dense")
    return load(tmp_path / "dense")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_smaller_model_that_stock_transformers_loads(method, dense, documents, tmp_path):
    before = {name: weight.clone() for name, weight in dense.model.state_dict().items()}
    smaller = fuse(dense, documents, FuseConfig(method=method, **SETTINGS))
    for name, weight in dense.model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert smaller.lineage.verb == "fuse"
    assert smaller.lineage.config["method"] == method
    assert smaller.lineage.figures["parameters"] == smaller.model.num_parameters() < dense.model.num_parameters()
    smaller.save(tmp_path / "smaller")
    ids = torch.arange(5, 15)[None]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    with torch.no_grad():
        assert torch.allclose(stock(input_ids=ids).logits, smaller.model(input_ids=ids).logits, atol=1e-5)


def test_removal_alone_is_the_kept_blocks_of_the_dense_model(dense, documents):
    smaller = fuse(dense, documents, FuseConfig(**SETTINGS | {"epochs": 0}))
    gone = {int(smaller.lineage.figures[f"round {number}/block"]) for number in (1, 2)}
    kept = [index for index in range(4) if index not in gone]
    for place, index in enumerate(kept):
        old, new = dense.model.model.layers[index].state_dict(), smaller.model.model.layers[place].state_dict()
        assert all(torch.equal(weight, new[name]) for name, weight in old.items())


def test_without_ranking_again_the_first_ranking_decides(dense, documents):
    figures = fuse(
        dense, documents, FuseConfig(**SETTINGS | {"rescore": False, "epochs": 0, "rate": 0.4})
    ).lineage.figures
    first = {index: figures[f"round 1/score of block {index}"] for index in (1, 2)}
    assert [figures["round 1/block"], figures["round 2/block"]] == sorted(first, key=first.get)
    assert figures["round 2/score"] == first[int(figures["round 2/block"])]


def test_the_same_run_is_finished_once_and_another_is_refused(dense, documents, tmp_path):
    out, config = tmp_path / "out", FuseConfig(**SETTINGS)
    told = []
    first = fuse(dense, documents, config, out=out, watch=lambda what, done, total: told.append(what))
    assert told
    told.clear()
    again = fuse(dense, documents, config, out=out, watch=lambda what, done, total: told.append(what))
    assert not told
    assert first.fingerprint == again.fingerprint == load(out).fingerprint
    with pytest.raises(PerplabError, match="other settings"):
        fuse(dense, documents, FuseConfig(**SETTINGS | {"seed": 1}), out=out)
    with pytest.raises(PerplabError, match="holds a model that no run made"):
        fuse(dense, documents, config, out=tmp_path / "dense")
    assert load(out).fingerprint == first.fingerprint


def test_a_window_longer_than_the_model_and_too_little_text_are_refused(dense, documents):
    dense.model.config.max_position_embeddings = 12
    with pytest.raises(PerplabError, match="length is 16 and the model has 12 positions"):
        fuse(dense, documents, FuseConfig(**SETTINGS))
    with pytest.raises(PerplabError, match="calibration text"):
        fuse(dense, [Document("short", "text", "text")], FuseConfig(length=12))
    with pytest.raises(PerplabError, match="leaves 1 of 4"):
        fuse(dense, documents, FuseConfig(**SETTINGS | {"rate": 0.75, "length": 12}))


def test_the_command_writes_a_model_and_tells_how_it_was_made(dense, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    words = {"calibration": str(tmp_path / "text.txt"), "config": FuseConfig(**SETTINGS), "progress": False}
    fuse_command(str(tmp_path / "dense"), out=tmp_path / "json", as_json=True, **words)
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == dict(load(tmp_path / "json").lineage.figures)
    assert told["figures"]["blocks"] == 2
    fuse_command(str(tmp_path / "dense"), out=tmp_path / "table", **words)
    table = capsys.readouterr().out
    assert "2 of 4 blocks" in table
    assert "round 2/loss after" in table
