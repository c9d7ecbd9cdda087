"""Every named convention against its definition, written out with plain forward passes and loops."""

import functools
import itertools
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.scoring import score
from perplab.scoring.conventions import CONVENTIONS, max_length_of, plan
from perplab.scoring.perplexity import perplexity
from perplab.text import Document

POSITIONS = 24


def begins_with_bos(tokenizer):
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(params=["tiny", "tiny, begins with bos", "pocket", "pocket, begins with bos"])
def language_model(request, tiny_model, tiny_tokenizer):
    """Models of 24 positions whose tokenizers add nothing, or a bos, before a text."""
    if request.param.startswith("pocket"):
        return pocket(request.param.endswith("bos"))
    tokenizer = begins_with_bos(tiny_tokenizer) if request.param.endswith("bos") else tiny_tokenizer
    return with_few_positions(LanguageModel(tiny_model("llama"), tokenizer))


@functools.cache
def pocket(with_bos):
    model = with_few_positions(load("pocket", dtype="float32"))
    if with_bos:
        begins_with_bos(model.tokenizer)
    return model


def with_few_positions(model):
    model.model.config.max_position_embeddings = POSITIONS
    return model


@pytest.fixture(scope="module")
def documents():
    """Documents of no, one, some and many tokens, and of just a window."""
    letters = random.Random(0).choices("abcdefgh the in,.\n", k=600)
    sizes = [60, 0, 1, POSITIONS, POSITIONS + 1, 43, 3, 17]
    texts = ["".join(itertools.islice(itertools.cycle(letters), 31 * n, 31 * n + size)) for n, size in enumerate(sizes)]
    return [Document(text, "d", f"document {n}") for n, text in enumerate(texts)]


def costs(model, ids):
    """Cost of `ids[1:]`, each after all that is before it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def plain_ids(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False)


def value(model, documents, name, **numbers):
    return perplexity(model, documents, convention=replace(CONVENTIONS[name], **numbers)).value


# --- the definitions ---


def guide_of_transformers(model, ids, length, stride):
    """The guide's loop: a loss with masked labels for each window, weighted by one less than its labels."""
    total, weights, reached = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        window = torch.tensor([ids[begin:end]])
        labels = window.clone()
        labels[:, : (end - begin) - (end - reached)] = -100
        with torch.no_grad():
            loss = model(window, labels=labels, use_cache=False).loss.item()
        weight = int((labels != -100).sum()) - 1
        reached = end
        if weight:  # the mean of no loss is not a number
            total, weights = total + loss * weight, weights + weight
        if end == len(ids):
            break
    return math.exp(total / weights)


def evaluation_of_gptq(model, ids, length):
    means = []
    for index in range(len(ids) // length):
        window = ids[index * length : (index + 1) * length]
        means.append(np.mean(costs(model, window)) * length)
    return math.exp(sum(means) / (len(means) * length))


def llama_perplexity(model, ids, length, bos):
    found = []
    for index in range(len(ids) // length):
        window = ids[index * length : (index + 1) * length]
        if bos is not None:
            window = [bos, *window[1:]]
        found += costs(model, window)[length // 2 :]
        assert len(found) == (index + 1) * (length - length // 2 - 1)
    return math.exp(np.mean(found))


def rolling_log_likelihood(model, ids, prefix, length):
    """Disjoint stretches of tokens to predict, each after one token, the last after as many as the model reads."""
    total, sequence = 0.0, [prefix, *ids]
    for first in range(0, len(ids), length):
        stop = min(first + length, len(ids))
        begin = first if stop < len(ids) else max(0, stop - length)
        total -= sum(costs(model, sequence[begin : stop + 1])[first - begin :])
    return total


def rows_of_nanochat(documents, row_length):
    """Rows by best fit: the first of the longest that fit; where none fits, the first of the shortest, cropped."""
    buffer, rows, row = list(documents), [], []
    while buffer:
        room = row_length - len(row)
        fitting = [ids for ids in buffer if len(ids) <= room]
        chosen = max(fitting, key=len) if fitting else min(buffer, key=len)
        buffer.pop(next(index for index, ids in enumerate(buffer) if ids is chosen))
        row = row + chosen[:room]
        if len(row) == row_length:
            rows.append(row)
            row = []
    return [*rows, row] if row else rows


# --- values ---


@pytest.mark.parametrize("stride", [7, 23, 24])
def test_hf_stride_is_the_guides_loop(language_model, documents, stride):
    ids = language_model.tokenizer("\n\n".join(document.text for document in documents)).input_ids
    expected = guide_of_transformers(language_model.model, ids, POSITIONS, stride)
    assert value(language_model, documents, "hf-stride", stride=stride) == pytest.approx(expected, rel=1e-6)


def test_gptq_is_the_mean_of_whole_windows(language_model, documents):
    ids = language_model.tokenizer("\n\n".join(document.text for document in documents)).input_ids
    expected = evaluation_of_gptq(language_model.model, ids, POSITIONS)
    assert value(language_model, documents, "gptq") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("window", [24, 15])
def test_llamacpp_scores_the_second_half_of_whole_windows(language_model, documents, window):
    text = "".join(document.text for document in documents)
    bos = language_model.tokenizer("").input_ids
    ids = bos + plain_ids(language_model, text.removesuffix("\n"))
    expected = llama_perplexity(language_model.model, ids, window, bos[0] if bos else None)
    assert value(language_model, documents, "llamacpp", window=window) == pytest.approx(expected, rel=1e-6)


def test_lm_eval_is_the_rolling_log_likelihood_over_words(language_model, documents):
    tokenizer = language_model.tokenizer
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    total = sum(
        rolling_log_likelihood(language_model.model, tokenizer(document.text).input_ids, prefix, POSITIONS)
        for document in documents
    )
    words = sum(len(re.split(r"\s+", document.text)) for document in documents)
    measured = perplexity(language_model, documents, convention="lm-eval")
    assert measured.nats == pytest.approx(-total, rel=1e-6)
    assert measured.num_bytes == sum(len(document.text.encode()) for document in documents)
    assert measured.value == pytest.approx(math.exp(-total / words), rel=1e-6)


def test_nanochat_is_bits_over_bytes_of_packed_rows(language_model, documents):
    bos = language_model.tokenizer.eos_token_id
    rows = rows_of_nanochat([[bos, *plain_ids(language_model, d.text)] for d in documents], POSITIONS + 1)
    nats = size = 0.0
    for row in rows:
        for token, cost in zip(row[1:], costs(language_model.model, row), strict=True):
            if token != bos:
                nats += cost
                size += len(language_model.tokenizer.decode([token]).encode())
    assert value(language_model, documents, "nanochat") == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_perplab_scores_every_token_of_every_document_from_half_a_window_or_more(language_model, documents):
    bos = language_model.tokenizer.eos_token_id
    found = []
    for document in documents:
        sequence = [bos, *plain_ids(language_model, document.text)]
        for begin in range(0, len(sequence) - 1, POSITIONS // 2):
            of_window = costs(language_model.model, sequence[begin : begin + POSITIONS + 1])
            found += of_window[POSITIONS // 2 :] if begin else of_window
    measured = perplexity(language_model, documents)
    assert measured.num_tokens == len(found)
    assert measured.value == pytest.approx(math.exp(np.mean(found)), rel=1e-6)
    assert measured.num_bytes == sum(len(document.text.encode()) for document in documents)


# --- plans ---


def requests_of(model, documents, name, **numbers):
    convention = replace(CONVENTIONS[name], **numbers)
    return list(plan(convention, model.tokenizer, documents, max_length_of(model)))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_no_token_is_scored_twice_and_no_window_is_longer_than_the_model_reads(language_model, documents, name):
    for document in requests_of(language_model, documents, name):
        scored = np.zeros(len(document.token_ids), dtype=int)
        for first, request in zip(document.first_positions, document.requests, strict=True):
            stop = first + len(request.continuation)
            np.testing.assert_array_equal(request.continuation, document.token_ids[first:stop])
            scored[first:stop] += 1
            assert len(request.input_ids) <= POSITIONS
        assert scored.max(initial=0) <= 1
        if name in ("perplab", "lm-eval"):
            assert scored.min(initial=1) == 1


def test_documents_of_a_packed_row_see_all_that_the_row_holds_before_them(language_model, documents):
    before = np.zeros(0, dtype=np.int32)
    for document in requests_of(language_model, documents, "nanochat"):
        for request in document.requests:
            if len(request.context) > 1:  # not the first of a row
                np.testing.assert_array_equal(request.context[: len(before)], before)
                assert len(request.context) == len(before) + 1 or document.num_bytes == 0
            before = np.concatenate((request.context, request.continuation))


def test_a_spelled_special_token_is_special_only_where_the_peer_reads_it_so(language_model):
    spelling = language_model.tokenizer.eos_token
    text = [Document(f"abc{spelling}abc" * 5, "d", "n")]
    for name, convention in CONVENTIONS.items():
        (document,) = requests_of(language_model, text, name, window=4)
        reads_it = convention.first_token in ("special tokens", "bos, then special tokens")
        spelled_out = (document.token_ids == language_model.tokenizer.eos_token_id) & ~document.added
        assert bool(spelled_out.any()) == reads_it
        assert document.ends[-1] == document.num_bytes or name == "nanochat"


def test_lm_eval_pays_for_the_bos_that_the_tokenizer_adds_unless_the_text_spells_it(tiny_model, tiny_tokenizer):
    bos = tiny_tokenizer.eos_token_id
    model = LanguageModel(tiny_model("llama"), begins_with_bos(tiny_tokenizer))
    (added,) = requests_of(model, [Document("abc", "d", "n")], "lm-eval")
    (spelled,) = requests_of(model, [Document("<eos>abc", "d", "n")], "lm-eval")
    assert added.requests[0].context.tolist() == spelled.requests[0].context.tolist() == [bos]
    assert added.requests[0].continuation.tolist() == spelled.requests[0].continuation.tolist()
    assert added.token_ids[0] == spelled.token_ids[0] == bos
    assert (added.ends[0], spelled.ends[0]) == (0, len("<eos>"))


def test_an_empty_document_has_no_tokens_and_is_no_error_beside_another(language_model):
    documents = [Document("", "d", "empty"), Document("abcabcabc", "d", "n")]
    empty, _ = requests_of(language_model, documents, "perplab")
    assert (len(empty.token_ids), empty.requests, empty.num_bytes) == (0, [], 0)


def test_positions_are_found_in_the_config_then_in_the_tokenizer(tiny_model, tiny_tokenizer):
    assert max_length_of(LanguageModel(tiny_model("gpt2"), tiny_tokenizer)) == 1024
    assert max_length_of(LanguageModel(tiny_model("bloom"), tiny_tokenizer)) == 2048
    tiny_tokenizer.model_max_length = 300
    assert max_length_of(LanguageModel(tiny_model("bloom"), tiny_tokenizer)) == 300


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("perplab", {"window": 25}, "window of 25 tokens is longer than the model's 24 positions"),
        ("hf-stride", {"window": 8, "stride": 9}, "stride of 9 is larger than the window of 8"),
        ("gptq", {"window": 20}, "too short: 9 tokens, where 20 are needed"),
        ("llamacpp", {"window": 5}, "too short: 9 tokens, where 10 are needed"),
        ("llamacpp", {"window": 2}, "no token to score by the convention llamacpp"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tiny_model, tiny_tokenizer, name, numbers, message):
    model = with_few_positions(LanguageModel(tiny_model("llama"), tiny_tokenizer))
    with pytest.raises(PerplabError, match=message):
        requests_of(model, [Document("abc def g", "d", "n")], name, **numbers)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("texts", [[], [""]])
def test_a_text_without_tokens_is_refused(tiny_model, tiny_tokenizer, name, texts):
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    with pytest.raises(PerplabError, match=r"too short|no token to score"):
        requests_of(model, [Document(text, "d", "n") for text in texts], name)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_lone_surrogate_is_refused(tiny_model, tiny_tokenizer, name):
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    documents = [Document("ab", "d", "before"), Document("ab\udc80", "d", "here")]
    with pytest.raises(PerplabError, match="here has a lone surrogate at character 2"):
        requests_of(model, documents, name)


def test_an_unknown_convention_is_refused_with_those_there_are(tiny_model, tiny_tokenizer):
    with pytest.raises(PerplabError, match="unknown convention 'wikitext': choose one of perplab, lm-eval"):
        score(LanguageModel(tiny_model("llama"), tiny_tokenizer), "abc", convention="wikitext")
