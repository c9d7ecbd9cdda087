"""Costs of requests against plain forward passes, on every way the engine can read a model."""

import numpy as np
import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.families import FAMILIES
from perplab.scoring import engine
from perplab.scoring.engine import head_of, score_requests, scored_states
from perplab.scoring.hidden_states import reads_packed_rows
from perplab.scoring.requests import Request
from perplab.scoring.token_metrics import TOKEN_METRICS, token_metrics

VOCABULARY = 101


def draw_requests(seed=0):
    """Documents of several lengths, and questions with four choices after a shared beginning."""
    rng = np.random.default_rng(seed)

    def tokens(count):
        return rng.integers(0, VOCABULARY, count).astype(np.int32)

    requests = [Request(tokens(1), tokens(int(length))) for length in rng.integers(1, 70, 6)]
    shots = tokens(20)
    for _ in range(3):
        question = np.concatenate((shots, tokens(12)))
        requests += [Request(question, tokens(int(length))) for length in rng.integers(1, 6, 4)]
    return requests


def plain_metrics(model, request):
    """All metrics of a request from a forward pass of its own."""
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(request.input_ids)[None].long(), use_cache=False).logits[0]
    scored = logits[len(request.context) - 1 :]
    return token_metrics(
        scored, torch.from_numpy(request.continuation).long(), lambda x: x, TOKEN_METRICS, vocabulary_size=VOCABULARY
    )


def assert_like_plain_passes(model, batch_tokens=None):
    requests = draw_requests()
    found = list(score_requests(LanguageModel(model, None), requests, TOKEN_METRICS, batch_tokens=batch_tokens))
    assert len(found) == len(requests)
    for request, scores in zip(requests, found, strict=True):
        for metric, expected in plain_metrics(model, request).items():
            if metric in ("rank", "log_rank", "top_p", "top_token"):  # tokens of nearly equal probability may swap
                continue
            np.testing.assert_allclose(scores[metric], expected, rtol=1e-4, atol=1e-4, err_msg=metric)


@pytest.mark.parametrize("batch_tokens", [None, 1, 150])
def test_every_family_equals_plain_forward_passes(family, tiny_model, batch_tokens):
    assert_like_plain_passes(tiny_model(family), batch_tokens)


def test_families_with_transformers_attention_interface_are_read_in_packed_rows(tiny_model):
    packed = {name for name in FAMILIES if reads_packed_rows(tiny_model(name))}
    assert packed == set(FAMILIES) - {"bloom", "falcon", "perplab_decoder"}


def test_a_family_that_nothing_is_known_about_is_scored_from_its_logits():
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
    assert config.model_type not in FAMILIES
    assert_like_plain_passes(GPTJForCausalLM(config).eval(), batch_tokens=100)


def test_a_sliding_window_shorter_than_the_text_is_kept(tiny_model):
    model = tiny_model("mistral")
    model.config.sliding_window = 8
    for layer in model.model.layers:
        layer.self_attn.config.sliding_window = 8
    assert_like_plain_passes(model)


def test_ranks_are_those_of_the_model(tiny_model):
    model, requests = tiny_model("llama"), draw_requests()
    found = score_requests(LanguageModel(model, None), requests, ("rank", "top_p", "top_token"))
    for request, scores in zip(requests, found, strict=True):
        expected = plain_metrics(model, request)
        np.testing.assert_array_equal(scores["top_token"], expected["top_token"])
        np.testing.assert_array_equal(scores["rank"], expected["rank"])
        np.testing.assert_allclose(scores["top_p"], expected["top_p"], atol=1e-5)


def test_states_with_their_head_are_the_models_logits(family, tiny_model):
    model, requests = tiny_model(family), draw_requests()
    language_model = LanguageModel(model, None)
    head, vocabulary_size = head_of(language_model)
    assert vocabulary_size == VOCABULARY
    with torch.no_grad():
        for part in scored_states(language_model, requests, batch_tokens=120):
            logits = head(part.hidden_states)
            for row, index, offset in zip(logits, part.request.tolist(), part.offset.tolist(), strict=True):
                inputs = requests[index].input_ids[: len(requests[index].context) + offset]
                plain = model(input_ids=torch.from_numpy(inputs)[None].long(), use_cache=False).logits[0, -1]
                torch.testing.assert_close(row, plain, rtol=1e-4, atol=1e-4)
            break  # one row of requests is as good as all


def test_two_models_meet_the_same_rows(tiny_model):
    requests = draw_requests()
    cuts = [
        [
            part.request.tolist()
            for part in scored_states(LanguageModel(tiny_model(name), None), requests, batch_tokens=90)
        ]
        for name in ("llama", "falcon")
    ]
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 1


def test_the_model_is_left_as_it_was(tiny_model):
    model = tiny_model("qwen2")
    before = model.config._attn_implementation
    ids = torch.arange(9)[None]
    logits = model(input_ids=ids).logits
    list(score_requests(LanguageModel(model, None), draw_requests()))
    assert model.config._attn_implementation == before
    assert torch.equal(model(input_ids=ids).logits, logits)


def test_the_head_is_applied_where_a_token_is_scored_and_nowhere_else(tiny_model, monkeypatch):
    seen = []
    whole = engine.token_metrics
    monkeypatch.setattr(
        engine, "token_metrics", lambda states, *a, **k: seen.append(len(states)) or whole(states, *a, **k)
    )
    context = np.arange(50, dtype=np.int32)
    list(score_requests(LanguageModel(tiny_model("llama"), None), [Request(context, np.array([1, 2], np.int32))]))
    assert seen == [2]


@pytest.mark.parametrize(
    ("path", "place"),
    [("model.embed_tokens", "the embedding"), ("model.layers.0.mlp.down_proj", "layer 1"), ("lm_head", "the head")],
)
def test_values_that_are_not_finite_are_named_by_layer_and_first_token(tiny_model, path, place):
    model = tiny_model("llama")
    weight = model.get_submodule(path).weight
    with torch.no_grad():
        weight[5] = float("nan")
    request = Request(np.array([1, 2, 5, 3], np.int32), np.array([4, 5], np.int32), "a.txt")
    token = {"the embedding": 2, "layer 1": 0, "the head": 3}[place]
    with pytest.raises(PerplabError, match=f"{place} of mine gives no finite value at token {token} of a.txt"):
        list(score_requests(LanguageModel(model, None, name="mine"), [request]))


def test_requests_that_do_not_fit_the_model_are_refused(tiny_model):
    model = tiny_model("gpt2")
    long = Request(np.zeros(1, np.int32), np.ones(model.config.n_positions + 1, np.int32))
    with pytest.raises(PerplabError, match="do not fit the 1024 positions"):
        list(score_requests(LanguageModel(model, None), [long]))
    foreign = Request(np.zeros(1, np.int32), np.array([VOCABULARY], np.int32))
    with pytest.raises(PerplabError, match=f"token {VOCABULARY} is outside the vocabulary of {VOCABULARY}"):
        list(score_requests(LanguageModel(model, None), [foreign]))
    with pytest.raises(PerplabError, match="batch_tokens is 0"):
        list(score_requests(LanguageModel(model, None), [], batch_tokens=0))
