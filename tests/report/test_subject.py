"""A model's study: what is shown up close is what was scored."""

import string
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.report import ReportConfig, report, study
from perplab.report.subject import shown_documents, spelled
from perplab.text import Document

DOCUMENTS = [
    Document("the cat\nsat there, " * 6, "prose", "a"),
    Document("x(y)", "code", "b"),
    Document("then", "prose", "c"),
]


@pytest.fixture(scope="module")
def byte_tokenizer():
    spelled_blanks = str.maketrans(" \n", "ĠĊ")
    letters = (string.ascii_letters + string.punctuation[:20] + " \n").translate(spelled_blanks)
    tokens = ["<eos>", *letters, "th", "the", "Ġthe", "é"[0]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture
def language_model(tiny_model, byte_tokenizer):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 32  # so that the first document takes several windows
    return LanguageModel(model, byte_tokenizer, name="tiny")


def test_every_shown_token_has_the_figures_of_the_scores_and_alternatives_of_the_same_context(language_model):
    subject = study(language_model, DOCUMENTS, ReportConfig(alternatives=100))
    assert [excerpt.document for excerpt in subject.excerpts] == [0, 1, 2]
    rows = subject.scores.tokens.to_pydict()
    for excerpt in subject.excerpts:
        mine = np.array(rows["document"]) == excerpt.document
        assert excerpt.num_tokens == mine.sum() == len(excerpt.texts)
        assert "".join(excerpt.texts) == DOCUMENTS[excerpt.document].text
        ids = np.array(rows["token_id"])[mine]
        place = np.argmax(excerpt.alternatives.token_ids == ids[:, None], axis=1)
        own = excerpt.alternatives.log_probs[np.arange(len(ids)), place]
        np.testing.assert_allclose(-own, excerpt.nll, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(place + 1, excerpt.rank)
        assert set(excerpt.alternatives.token_ids.ravel().tolist()) <= set(subject.spelling)


def test_a_long_document_is_shown_up_to_a_byte_whatever_the_window(language_model):
    subject = study(language_model, DOCUMENTS, ReportConfig(shown_bytes=50, shown_documents=1))
    (excerpt,) = subject.excerpts
    assert excerpt.sizes.sum() <= 50
    assert excerpt.sizes.sum() + 3 > 50  # the longest token of this text has three bytes
    assert "".join(excerpt.texts) == DOCUMENTS[0].text[: excerpt.sizes.sum()]
    assert len(excerpt.alternatives.token_ids) == len(excerpt.texts) < excerpt.num_tokens


def test_domains_take_turns_and_documents_without_a_token_are_passed_over():
    domains = ["a", "a", "a", "b", "b", "c"]
    documents = pa.table({"domain": domains})
    tokens = pa.table({"document": pa.array([0, 0, 1, 2, 4, 4, 5], pa.int32())})
    scores = SimpleNamespace(documents=documents, tokens=tokens)
    assert shown_documents(scores, 4) == [0, 4, 5, 1]
    assert shown_documents(scores, 99) == [0, 4, 5, 1, 2]


def test_tokens_are_spelled_with_their_blanks_and_unfinished_characters_as_the_vocabulary_writes_them(byte_tokenizer):
    index = byte_tokenizer.get_vocab()
    assert spelled(byte_tokenizer, index["Ġthe"]) == " the"
    assert spelled(byte_tokenizer, index["Ċ"]) == "\n"
    assert spelled(byte_tokenizer, index["é"]) == "é"
    assert spelled(byte_tokenizer, index["<eos>"]) == "<eos>"
    assert spelled(byte_tokenizer, len(byte_tokenizer) + 5) == f"#{len(byte_tokenizer) + 5}"


def test_a_sentencepiece_style_token_keeps_its_blank():
    backend = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "t": 2, "▁t": 3}, [("▁", "t")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    assert spelled(PreTrainedTokenizerFast(tokenizer_object=backend), 3) == " t"


def test_documents_that_can_be_read_only_once_are_refused(language_model):
    with pytest.raises(PerplabError, match="read only once"):
        study(language_model, iter(DOCUMENTS))


def test_studies_of_different_documents_do_not_make_one_page(language_model):
    first, second = study(language_model, DOCUMENTS), study(language_model, DOCUMENTS[:2])
    with pytest.raises(PerplabError, match="not studied on the same documents"):
        report([first, second])


def test_a_page_of_two_real_models_is_the_same_bytes_each_time(language_model, tiny_model, byte_tokenizer):
    other = LanguageModel(tiny_model("gpt2"), byte_tokenizer, name="other")
    with torch.no_grad():
        pages = [report([study(model, DOCUMENTS) for model in (language_model, other)]) for _ in range(2)]
    assert pages[0] == pages[1]
    assert "other costs" in pages[0] or "does not tell other and tiny apart" in pages[0]


@pytest.mark.parametrize("setting", ["shown_documents", "shown_bytes", "alternatives"])
def test_settings_that_show_nothing_are_refused(setting):
    with pytest.raises(PerplabError, match=f"{setting} is 0"):
        ReportConfig(**{setting: 0})
