"""Scores of any causal LM against plain forward passes."""

import json
import math
import string
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring import TokenScores, score
from perplab.scoring.conventions import CONVENTIONS
from perplab.text import Document


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Byte-level tokens for letters and punctuation, within the vocabulary of every tiny model."""
    spelled = str.maketrans(" \n", "ĠĊ")  # how byte-level vocabularies write a space and a newline
    letters = (string.ascii_letters + string.punctuation[:20] + " \n").translate(spelled)
    tokens = ["<eos>", *letters, "th", "the"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def costs_of_plain_forward(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


def test_costs_of_every_family_equal_a_plain_forward_pass(family, tiny_model, byte_tokenizer):
    language_model = LanguageModel(tiny_model(family), byte_tokenizer)
    scores = score(language_model, "the cat\nsat there")
    ids = scores.tokens["token_id"].to_pylist()
    assert byte_tokenizer.decode(ids) == "the cat\nsat there"
    expected = costs_of_plain_forward(language_model.model, [0, *ids])
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-5)


def test_every_token_of_a_long_document_is_scored_once_from_its_own_window(tiny_model, byte_tokenizer):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 16
    text = "the quick brown fox jumps over the lazy dog, " * 3
    scores = score(LanguageModel(model, byte_tokenizer), text)
    ids = [0, *scores.tokens["token_id"].to_pylist()]
    expected, scored = [], 0
    while scored < len(ids) - 1:
        begin = max(0, scored - 8)
        end = min(len(ids) - 1, begin + 16)
        expected.extend(costs_of_plain_forward(model, ids[begin : end + 1])[scored - begin :])
        scored = end
    np.testing.assert_allclose(scores.nll, expected, rtol=1e-4, atol=1e-5)


def test_byte_spans_tile_each_document(tiny_model, byte_tokenizer):
    documents = [Document("the then", "prose", "a"), Document("x(y)", "code", "b")]
    scores = score(LanguageModel(tiny_model("llama"), byte_tokenizer), documents)
    for index, document in enumerate(documents):
        rows = [row for row in scores.tokens.to_pylist() if row["document"] == index]
        assert [row["start"] for row in rows] == [0, *(row["end"] for row in rows[:-1])]
        assert rows[-1]["end"] == len(document.text)
        assert "".join(document.text[row["start"] : row["end"]] for row in rows) == document.text


def test_figures_are_the_sums_they_are_defined_by(tiny_model, byte_tokenizer):
    scores = score(LanguageModel(tiny_model("gpt2"), byte_tokenizer), "the end")
    nats = float(np.sum(scores.nll, dtype=np.float64))
    assert scores.perplexity == pytest.approx(math.exp(nats / len(scores.nll)))
    assert scores.bits_per_byte == pytest.approx(nats / math.log(2) / 7)


def test_domains_add_up_to_the_whole_and_equal_documents_scored_alone(tiny_model, byte_tokenizer):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    documents = [Document("abc", "x", "1"), Document("the", "y", "2"), Document("cab the", "x", "3")]
    scores = score(language_model, documents)
    parts = scores.by_domain()
    assert list(parts) == ["x", "y"]
    assert sum(part.nats for part in parts.values()) == pytest.approx(scores.nats)
    assert sum(part.num_bytes for part in parts.values()) == scores.num_bytes
    alone = score(language_model, [documents[0], documents[2]])
    assert parts["x"].tokens.equals(alone.tokens)


def test_nothing_to_score_is_refused(tiny_model, byte_tokenizer):
    with pytest.raises(PerplabError, match="no token to score"):
        score(LanguageModel(tiny_model("llama"), byte_tokenizer), "")


def test_costs_that_are_not_finite_are_refused_with_their_place(tiny_model, byte_tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(PerplabError, match="the head of model gives no finite value at token 0 of here"):
        score(LanguageModel(model, byte_tokenizer), [Document("abc", "d", "here")])


def test_metrics_are_columns_beside_the_cost(tiny_model, byte_tokenizer):
    scores = score(LanguageModel(tiny_model("llama"), byte_tokenizer), "the end", metrics=("rank", "entropy"))
    assert scores.tokens.column_names[-3:] == ["nll", "rank", "entropy"]
    assert scores.tokens["rank"].to_numpy().min() >= 1


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    words = ["the", "then", "cat", "(x)", "end", "\n"]
    return [
        Document(" ".join(rng.choice(words, int(length))), ("prose", "code")[index % 2], f"d{index}")
        for index, length in enumerate(rng.integers(1, 40, 23))
    ]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("perplab.scoring.text_scores.PART_TOKENS", 60)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_scores_in_a_folder_are_those_in_memory(tiny_model, byte_tokenizer, documents, small_parts, tmp_path):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    in_memory, kept = score(language_model, documents), score(language_model, documents, out=tmp_path / "scores")
    read = TokenScores.read(tmp_path / "scores")
    assert len(list((tmp_path / "scores").glob("tokens-*.parquet"))) > 3
    for other in (kept, read):
        assert other.tokens.equals(in_memory.tokens)
        assert other.documents.equals(in_memory.documents)
        assert other.origin.items() >= in_memory.origin.items()
    read.save(tmp_path / "copy")
    assert TokenScores.read(tmp_path / "copy").tokens.equals(in_memory.tokens)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 4, 9, 16, 22])
def test_a_run_that_stops_goes_on_to_the_same_bytes(
    tiny_model, byte_tokenizer, documents, small_parts, tmp_path, stop_after
):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    score(language_model, documents, out=tmp_path / "whole")
    seen = []

    def stop(tokens, size):
        seen.append(size)
        if len(seen) == stop_after:
            raise StoppedError

    with pytest.raises(StoppedError):
        score(language_model, documents, out=tmp_path / "scores", watch=stop)
    with pytest.raises(PerplabError, match="are unfinished"):
        TokenScores.read(tmp_path / "scores")
    whole_parts = len(list((tmp_path / "scores").glob("documents-*.parquet")))
    again = []
    score(language_model, documents, out=tmp_path / "scores", watch=lambda tokens, size: again.append(size))
    assert contents(tmp_path / "scores") == contents(tmp_path / "whole")
    skipped = len(documents) - len(again)
    assert (skipped > 0) == (whole_parts > 0), "documents of whole parts are not scored again"
    nothing = []
    score(language_model, documents, out=tmp_path / "scores", watch=lambda tokens, size: nothing.append(size))
    assert nothing == []


def test_a_part_whose_documents_were_not_written_is_written_again(
    tiny_model, byte_tokenizer, documents, small_parts, tmp_path
):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    score(language_model, documents, out=tmp_path / "whole")
    for name in ("scores.json", "tokens-00000.parquet", "documents-00000.parquet", "tokens-00001.parquet"):
        (tmp_path / "scores").mkdir(exist_ok=True)
        (tmp_path / "scores" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    manifest = json.loads((tmp_path / "scores" / "scores.json").read_text())
    (tmp_path / "scores" / "scores.json").write_text(json.dumps(manifest | {"parts": None}))
    (tmp_path / "scores" / ".partial-left-by-a-kill").write_bytes(b"x")
    score(language_model, documents, out=tmp_path / "scores")
    assert contents(tmp_path / "scores") == contents(tmp_path / "whole")


def test_a_folder_with_other_scores_is_refused(tiny_model, byte_tokenizer, documents, tmp_path):
    language_model = LanguageModel(tiny_model("llama"), byte_tokenizer)
    score(language_model, documents, out=tmp_path / "scores")
    with pytest.raises(PerplabError, match="holds scores with metrics"):
        score(language_model, documents, metrics=("rank",), out=tmp_path / "scores")
    other = LanguageModel(tiny_model("gpt2"), byte_tokenizer, name="other")
    with pytest.raises(PerplabError, match="holds scores with model 'model', not 'other'"):
        score(other, documents, out=tmp_path / "scores")
    with pytest.raises(PerplabError, match="holds scores with text_fingerprint"):
        score(language_model, documents[1:], out=tmp_path / "scores")
    hybrid = replace(CONVENTIONS["perplab"], scored_tokens="tokens of the text")
    with pytest.raises(PerplabError, match="holds scores with convention_choices"):
        score(language_model, documents, convention=hybrid, out=tmp_path / "scores")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(PerplabError, match="something other than scores"):
        score(language_model, documents, out=tmp_path / "notes")


def test_files_of_another_version_or_damaged_are_refused_by_name(tiny_model, byte_tokenizer, documents, tmp_path):
    folder = tmp_path / "scores"
    score(LanguageModel(tiny_model("llama"), byte_tokenizer), documents, out=folder)
    tokens, manifest = folder / "tokens-00000.parquet", folder / "scores.json"
    table = pq.read_table(tokens)
    whole, described = tokens.read_bytes(), json.loads(manifest.read_text())

    pq.write_table(table.replace_schema_metadata({b"perplab.format": b"0"}), tokens)
    with pytest.raises(PerplabError, match=r"tokens-00000.parquet has format 0, this version reads 1"):
        TokenScores.read(folder)
    pq.write_table(table.drop_columns("window"), tokens)
    with pytest.raises(PerplabError, match=r"has no column window"):
        TokenScores.read(folder)
    tokens.write_bytes(whole[:-20])
    with pytest.raises(PerplabError, match=r"tokens-00000.parquet cannot be read"):
        TokenScores.read(folder)
    tokens.unlink()
    with pytest.raises(PerplabError, match="does not exist"):
        TokenScores.read(folder)
    manifest.write_text(json.dumps(described | {"format": 7}))
    with pytest.raises(PerplabError, match=r"scores.json has format 7"):
        TokenScores.read(folder)
    with pytest.raises(PerplabError, match="holds no scores"):
        TokenScores.read(tmp_path)


def test_text_that_is_not_unicode_is_refused_by_document(tiny_model, byte_tokenizer):
    with pytest.raises(PerplabError, match="bad has a lone surrogate"):
        score(LanguageModel(tiny_model("llama"), byte_tokenizer), [Document("a\ud800", "d", "bad")])
