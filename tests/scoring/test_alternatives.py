"""The likeliest tokens at each place, against whole distributions."""

import numpy as np
import pytest
import torch

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring import alternatives as module
from perplab.scoring.alternatives import alternatives
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request

VOCABULARY = 101


def ids(*values):
    return np.array(values, dtype=np.int32)


REQUESTS = [
    Request(ids(0), ids(5, 7, 9, 11)),
    Request(ids(0, 5, 7), ids(2)),
    Request(ids(0), np.arange(1, 60, dtype=np.int32)),
]


@pytest.fixture
def model_of(tiny_model, tiny_tokenizer):
    return lambda family: LanguageModel(tiny_model(family), tiny_tokenizer, name="tiny")


def test_they_are_the_top_of_the_distribution_a_plain_forward_pass_gives(family, model_of):
    language_model = model_of(family)
    found = alternatives(language_model, REQUESTS, 4)
    expected = []
    for request in REQUESTS:
        inputs = torch.from_numpy(request.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            logits = language_model.model(input_ids=inputs, use_cache=False).logits[0, len(request.context) - 1 :]
        expected.append(torch.log_softmax(logits.double(), dim=-1))
    log_probs = torch.cat(expected).numpy()
    np.testing.assert_allclose(found.log_probs, -np.sort(-log_probs, axis=1)[:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(log_probs, found.token_ids.astype(np.int64), axis=1), found.log_probs, rtol=1e-4, atol=1e-5
    )


def test_a_token_among_its_alternatives_has_the_probability_and_place_that_its_cost_and_rank_say(model_of):
    language_model = model_of("llama")
    found = alternatives(language_model, REQUESTS, VOCABULARY)
    scored = list(score_requests(language_model, REQUESTS, ("nll", "rank")))
    nll, rank = (np.concatenate([part[metric] for part in scored]) for metric in ("nll", "rank"))
    labels = np.concatenate([request.continuation for request in REQUESTS])
    place = np.argmax(found.token_ids == labels[:, None], axis=1)
    np.testing.assert_array_equal(place + 1, rank)
    np.testing.assert_allclose(-found.log_probs[np.arange(len(labels)), place], nll, rtol=1e-5, atol=1e-5)


def test_all_of_a_vocabulary_has_probability_one_and_more_is_not_to_be_had(model_of):
    found = alternatives(model_of("gpt2"), REQUESTS, 10 * VOCABULARY)
    assert found.token_ids.shape[1] == VOCABULARY
    np.testing.assert_allclose(np.exp(found.log_probs.astype(np.float64)).sum(axis=1), 1.0, rtol=1e-5)
    assert all(sorted(row) == list(range(VOCABULARY)) for row in found.token_ids)


def test_cutting_the_work_into_small_chunks_changes_nothing(model_of, monkeypatch):
    language_model = model_of("llama")
    whole = alternatives(language_model, REQUESTS, 3)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 7 * VOCABULARY)
    cut = alternatives(language_model, REQUESTS, 3)
    np.testing.assert_array_equal(whole.token_ids, cut.token_ids)
    np.testing.assert_allclose(whole.log_probs, cut.log_probs, rtol=1e-6)


@pytest.mark.parametrize(
    ("requests", "count", "words"), [(REQUESTS, 0, "0 alternatives"), ([], 3, "no token to find alternatives of")]
)
def test_what_has_no_answer_is_refused(model_of, requests, count, words):
    with pytest.raises(PerplabError, match=words):
        alternatives(model_of("llama"), requests, count)


def test_a_distribution_that_is_not_a_number_is_refused_with_its_place(model_of):
    language_model = model_of("llama")
    with torch.no_grad():
        language_model.model.lm_head.weight[5] = float("nan")
    with pytest.raises(PerplabError, match="no distribution at scored token 0"):
        alternatives(language_model, REQUESTS, 3)
