"""Divergence of two models' distributions against plain forward passes."""

import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import perplab.scoring.divergence as divergence_module
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.divergence import divergence, vocabulary_difference
from perplab.text import Document, train_tokenizer

DOCUMENTS = [
    Document("the cat sat there", "prose", "one"),
    Document("a hat, a bat, and that is that", "prose", "two"),
    Document("x = y\nz = x", "code", "three"),
]


@pytest.fixture
def model_of(tiny_model, tiny_tokenizer):
    def made(family, name="model", change=0.0):
        model = tiny_model(family)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for parameter in model.parameters():
                parameter.add_(change * torch.randn_like(parameter))
        return LanguageModel(model, tiny_tokenizer, name=name)

    return made


def distributions(language_model, document):
    """Probabilities from a plain forward pass, and the tokens that came."""
    ids = language_model.tokenizer.encode(document.text, add_special_tokens=False)
    with torch.no_grad():
        logits = language_model.model(input_ids=torch.tensor([[0, *ids[:-1]]]), use_cache=False).logits[0]
    return torch.softmax(logits.double(), dim=-1).numpy(), np.array(ids)


@pytest.mark.parametrize("families", [("llama", "llama"), ("gpt2", "llama"), ("gemma2", "bloom")])
def test_every_figure_equals_its_definition_on_plain_forward_passes(families, model_of):
    first, second = model_of(families[0]), model_of(families[1], change=0.1)
    kl, same_top, change = [], [], []
    for document in DOCUMENTS:
        (p, ids), (q, _) = distributions(first, document), distributions(second, document)
        kl.extend((p * np.log(p / q)).sum(axis=1))
        same_top.extend(p.argmax(axis=1) == q.argmax(axis=1))
        change.extend((q - p)[np.arange(len(ids)), ids])
    found = divergence(first, second, DOCUMENTS, resamples=200)
    assert found.tokens == len(kl)
    assert found.mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert (found.median, found.p90, found.p99) == pytest.approx(np.quantile(kl, (0.5, 0.9, 0.99)), rel=1e-4)
    assert found.maximum == pytest.approx(max(kl), rel=1e-4)
    assert found.same_top_rate == np.mean(same_top)
    assert found.probability_change_rms == pytest.approx(math.sqrt(np.mean(np.square(change))), rel=1e-4)
    assert found.mean_interval.low <= found.mean <= found.mean_interval.high
    assert found.same_top_interval.low <= found.same_top_rate <= found.same_top_interval.high


def test_a_model_does_not_diverge_from_itself(family, model_of):
    found = divergence(model_of(family), model_of(family), DOCUMENTS, resamples=100)
    assert (found.mean, found.median, found.maximum, found.probability_change_rms) == (0, 0, 0, 0)
    assert (found.same_top_rate, found.mean_interval.high, found.same_top_interval.low) == (1, 0, 1)


def test_neither_chunks_nor_batches_change_the_figures(model_of, monkeypatch):
    models = model_of("llama"), model_of("llama", change=0.1)
    whole = divergence(*models, DOCUMENTS, resamples=100)
    monkeypatch.setattr(divergence_module, "CHUNK_LOGITS", 300)
    parts = divergence(*models, DOCUMENTS, batch_tokens=5, resamples=100)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-4)
    assert parts.maximum == pytest.approx(whole.maximum, rel=1e-4)
    assert parts.same_top_interval == whole.same_top_interval


def test_both_models_read_windows_that_fit_the_shorter_one(model_of):
    long, short = model_of("llama"), model_of("llama")
    short.model.config.max_position_embeddings = 8
    assert divergence(long, short, DOCUMENTS, resamples=100).maximum == 0


def test_one_document_gives_figures_without_intervals(model_of):
    found = divergence(model_of("llama"), model_of("llama", change=0.1), DOCUMENTS[:1])
    assert found.mean > 0
    assert found.mean_interval is None


def test_progress_is_told_by_document(model_of):
    told = []
    divergence(model_of("llama"), model_of("gpt2"), DOCUMENTS, watch=lambda *done: told.append(done), resamples=100)
    assert told == [(len(document.text), len(document.text)) for document in DOCUMENTS]


def test_vocabularies_of_one_size_with_other_tokens_are_refused(model_of):
    first, second = model_of("llama", "base"), model_of("llama", "other")
    description = json.loads(first.tokenizer.backend_tokenizer.to_str())
    ids = description["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    swapped = Tokenizer.from_str(json.dumps(description))
    second.tokenizer = PreTrainedTokenizerFast(tokenizer_object=swapped, eos_token="<eos>")
    assert len(first.tokenizer) == len(second.tokenizer)
    with pytest.raises(PerplabError, match="token 'a' is 12 in base and 13 in other"):
        divergence(first, second, DOCUMENTS)


def test_a_token_that_one_vocabulary_lacks_is_named(model_of):
    first, second = model_of("llama", "base"), model_of("llama", "other")
    second.tokenizer = train_tokenizer(DOCUMENTS, 257)
    assert "missing in other" in vocabulary_difference(first, second)


def test_heads_of_different_sizes_are_refused(model_of):
    first, second = model_of("llama", "base"), model_of("llama", "padded")
    second.model.resize_token_embeddings(128)
    assert vocabulary_difference(first, second) == "the heads differ: base predicts over 101 ids and padded over 128"


def test_a_distribution_that_is_not_finite_is_refused(model_of):
    first, second = model_of("llama", "base"), model_of("llama", "broken")
    with torch.no_grad():
        second.model.get_output_embeddings().weight[:] = math.nan
    with pytest.raises(PerplabError, match="broken from base is not finite at scored token 0"):
        divergence(first, second, DOCUMENTS)
