"""perplab inside lm-evaluation-harness, against the harness's own backend on the same weights."""

import json
import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from perplab.errors import PerplabError
from perplab.evaluation.stop_strings import continue_until
from perplab.models import LanguageModel, load

lm_eval = pytest.importorskip("lm_eval")

from perplab.evaluation.harness import PerplabLM, encode_pairs  # noqa: E402 (needs lm_eval)

POSITIONS = 48
GENERATION = {"until": ["\n\n", "xy"], "max_gen_toks": 12, "do_sample": False}


@pytest.fixture(autouse=True)
def local_cache(tmp_path, monkeypatch):
    """Data sets go to a folder of the test, and lm-eval's global seeds do not leave it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with torch.random.fork_rng():
        yield


@pytest.fixture
def language_model(tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    model.config.max_position_embeddings = POSITIONS
    return LanguageModel(model, tiny_tokenizer)


@pytest.fixture
def hf():
    """`hf(language_model)` is the harness's own backend for it."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return lambda language_model: huggingface.HFLM(
        pretrained=language_model.model, tokenizer=language_model.tokenizer, batch_size=3, device="cpu"
    )


def asked(*arguments):
    """Instances as the harness makes them, without what no model reads."""
    return [SimpleNamespace(args=each, task_name="test") for each in arguments]


def assert_same_answers(found, expected):
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], atol=1e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


def pairs(language_model):
    """Contexts and continuations of every kind; each greedy token once, so that some flags are true."""
    shots = "Question: what is it?\nAnswer:"
    context = "ab"
    ids = torch.tensor([language_model.tokenizer.encode(context)])
    continued = language_model.model.generate(ids, max_new_tokens=3, do_sample=False)
    greedy = language_model.tokenizer.decode(continued[0, ids.shape[1] :])
    return [
        *((shots, f" {letter}") for letter in string.ascii_lowercase[:5]),
        (shots + " \n", "moved"),
        ("", "without context"),
        ("", "<eos>begins with the prefix"),
        ("<eos>spelled", " prefix"),
        ("long context " * 9, "and an end"),
        ("a", "b" * POSITIONS),
        (context, greedy),
        (context, greedy[:1]),
        (shots, " a"),
    ]


def with_bos(tokenizer):
    """The tokenizer, now putting its bos before every text."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    tokenizer.bos_token = "<eos>"
    return tokenizer


@pytest.mark.parametrize("prepare", [lambda tokenizer: tokenizer, with_bos])
def test_log_likelihoods_and_greedy_flags_are_those_of_hf(language_model, hf, prepare):
    language_model.tokenizer = prepare(language_model.tokenizer)
    requests = asked(*pairs(language_model))
    found = PerplabLM(language_model).loglikelihood(requests)
    assert_same_answers(found, hf(language_model).loglikelihood(requests))
    assert any(is_greedy for _, is_greedy in found)


@pytest.mark.parametrize("prepare", [lambda tokenizer: tokenizer, with_bos])
def test_rolling_log_likelihoods_are_those_of_hf(language_model, hf, prepare):
    language_model.tokenizer = prepare(language_model.tokenizer)
    # No period: where two windows read the same tokens, hf's cache of logits gives one of them the other's costs.
    letters = "".join(np.random.default_rng(0).choice(list(string.ascii_letters), 250))
    requests = asked(*((letters[:length],) for length in (0, 1, POSITIONS - 1, POSITIONS, POSITIONS + 1, 250)))
    found = PerplabLM(language_model).loglikelihood_rolling(requests)
    np.testing.assert_allclose(found, hf(language_model).loglikelihood_rolling(requests), rtol=1e-5, atol=1e-4)


def test_generations_are_those_of_hf(language_model, hf):
    contexts = ["ab", "a longer context", "c" * 40, "with white space "]
    until_letters = {"until": list("aeiou5{"), "max_gen_toks": 30}
    requests = asked(*((context, kwargs) for context in contexts for kwargs in (GENERATION, until_letters)))
    found = PerplabLM(language_model).generate_until(requests)
    assert found == hf(language_model).generate_until(requests)
    assert len(set(map(len, found))) > 2  # some stopped early


def test_a_batch_continues_each_prompt_as_if_alone(family, tiny_model, tiny_tokenizer):
    language_model = LanguageModel(tiny_model(family), tiny_tokenizer)
    prompts = [np.array(tiny_tokenizer.encode(text)) for text in ("a", "some words", "a prompt of many letters", "xyz")]

    def continued(some):
        return dict(continue_until(language_model, some, ["q"], 10, do_sample=False))

    together = continued(prompts)
    assert sorted(together) == [0, 1, 2, 3]
    for number, prompt in enumerate(prompts):
        assert continued([prompt])[0] == together[number]


def test_small_batches_give_the_same_text_as_large_ones(language_model):
    prompts = [np.array(language_model.tokenizer.encode("word " * count)) for count in (1, 5, 2, 4, 3)]
    one, many = (
        dict(continue_until(language_model, prompts, ["z"], 8, batch_tokens=tokens, do_sample=False))
        for tokens in (1, 10_000)
    )
    assert one == many


def test_a_stop_string_in_the_prompt_or_across_its_end_stops_nothing(language_model):
    """Only what is generated counts."""
    prompt = np.array(language_model.tokenizer.encode("abc"))
    ((_, text),) = continue_until(language_model, [prompt], [], 6, do_sample=False)
    ((_, same),) = continue_until(language_model, [prompt], ["abc", f"c{text[0]}"], 6, do_sample=False)
    assert same == text
    ((_, cut),) = continue_until(language_model, [prompt], [text[2:4]], 6, do_sample=False)
    assert cut == text[: text.index(text[2:4])]


def test_sampling_follows_the_global_seed_and_temperature_zero_is_greedy(language_model):
    model = PerplabLM(language_model)

    def generated(seed, **kwargs):
        torch.manual_seed(seed)
        return model.generate_until(asked(("ab", {"until": [], "max_gen_toks": 20, **kwargs})))

    assert generated(1, do_sample=True, temperature=1.0) == generated(1, do_sample=True, temperature=1.0)
    assert generated(1, temperature=1.0) != generated(2, temperature=1.0)
    assert generated(1, temperature=0.0) == generated(2) == generated(3, do_sample=False, temperature=0.7)


def test_what_cannot_be_asked_is_refused(language_model):
    model = PerplabLM(language_model)
    with pytest.raises(PerplabError, match="has 49 tokens of its own"):
        model.loglikelihood(asked(("a", "b" * (POSITIONS + 1))))
    with pytest.raises(PerplabError, match="has 0 tokens of its own"):
        model.loglikelihood(asked(("a", "")))
    with pytest.raises(PerplabError, match="continuations of 48 tokens leave no room"):
        model.generate_until(asked(("a", {"max_gen_toks": POSITIONS})))


def test_pairs_share_the_encoding_of_a_context_and_keep_their_order():
    calls = []

    def encode(texts, _):
        calls.append(list(texts))
        return [np.array([ord(letter) for letter in text], dtype=np.int32) for text in texts]

    found = encode_pairs([("q ", "a"), ("q ", "b"), ("", "c")], encode, prefix_token=0)
    assert [(context.tolist(), "".join(map(chr, rest))) for context, rest in found] == [
        ([ord("q")], " a"),
        ([ord("q")], " b"),
        ([0], "c"),
    ]
    assert calls == [["q"], ["q a", "q b"], ["c"]]


def write_tasks(folder):
    """A five-shot task with four choices, a perplexity and a generation, as YAML files with their data."""
    rows = [
        {"question": f"What is {n} plus {n % 3}?", "choices": [f"{n + k} of them" for k in range(4)], "answer": n % 3}
        for n in range(9)
    ]
    texts = [{"page": f"Page {n} says so. " * (1 + n)} for n in range(4)]
    for name, records in (("rows", rows), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    common = {"dataset_path": "json", "test_split": "test", "fewshot_split": "test"}
    data = {name: {"data_files": {"test": str(folder / f"{name}.jsonl")}} for name in ("rows", "texts")}
    question = {"dataset_kwargs": data["rows"], "doc_to_text": "{{question}}\nAnswer:", **common}
    tasks = {
        "sums": {
            **question,
            "output_type": "multiple_choice",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "num_fewshot": 5,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "pages": {
            **common,
            "dataset_kwargs": data["texts"],
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "answers": {
            **question,
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": GENERATION,
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **task}))  # JSON is YAML
    return list(tasks)


@pytest.mark.parametrize("model", ["tiny", "pocket"])
def test_whole_tasks_come_out_as_with_hf(model, tiny_model, tiny_tokenizer, hf, tmp_path):
    from lm_eval.tasks import TaskManager

    tasks = write_tasks(tmp_path)
    language_model = LanguageModel(tiny_model("llama"), tiny_tokenizer)
    if model == "pocket":
        language_model = load("pocket", dtype="float32")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found, expected = (
        lm_eval.simple_evaluate(model=backend, tasks=tasks, task_manager=manager, bootstrap_iters=0)
        for backend in (PerplabLM(language_model), hf(language_model))
    )
    for task in tasks:
        figures = {name: value for name, value in expected["results"][task].items() if isinstance(value, float)}
        assert figures
        for name, value in figures.items():
            assert found["results"][task][name] == pytest.approx(value, rel=1e-5), name
    answers, others = ([sample["resps"] for sample in results["samples"]["sums"]] for results in (found, expected))
    for one, other in zip(answers, others, strict=True):
        assert_same_answers([response for (response,) in one], [response for (response,) in other])
    texts, others = ([sample["resps"] for sample in results["samples"]["answers"]] for results in (found, expected))
    assert texts == others


def test_the_harness_finds_the_model_by_its_name_and_loads_a_folder(tiny_model, tiny_tokenizer, tmp_path):
    from lm_eval.api.registry import get_model

    LanguageModel(tiny_model("llama"), tiny_tokenizer).save(tmp_path / "model")
    # What the command line passes beside --model_args where its user names nothing else.
    defaults = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    model = get_model("perplab").create_from_arg_string(f"pretrained={tmp_path / 'model'},dtype=bfloat16", defaults)
    assert isinstance(model, PerplabLM)
    assert model.language_model.model.dtype == torch.bfloat16
    assert model.loglikelihood(asked(("a", "b")))[0][0] < 0


@pytest.mark.slow
def test_the_module_is_the_harness_command_with_perplab_among_its_models(tmp_path):
    import os
    import subprocess
    import sys

    write_tasks(tmp_path)
    arguments = ["--model", "perplab", "--model_args", "pretrained=pocket,dtype=bfloat16", "--tasks", "sums"]
    command = [sys.executable, "-m", "perplab.evaluation", *arguments, "--include_path", tmp_path, "--limit", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HOME": tmp_path})
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout
