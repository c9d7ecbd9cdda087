"""Training prompts and adapters, and the verb `prompt`."""

import json
import os
import random
import signal
import string

import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import perplab
from perplab.artifacts import write_json
from perplab.commands.prompt import prompt as prompt_command
from perplab.compression import QuantizeConfig, quantize
from perplab.compression.prompts import DynamicPrompting, PromptConfig, prompt
from perplab.compression.prompts.adapters import encoded_prompt, prefix_states
from perplab.compression.prompts.prompting import planned_prompts
from perplab.compression.prompts.rows import Rows
from perplab.compression.prompts.soft_prompts import attention_statistics, prompt_loss
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.latent_tokens import LatentCache, read_after
from perplab.text import open_corpus, token_store

SHORT = {"steps": 6, "batch_rows": 4, "row_tokens": 12, "context_tokens": 4, "prompts": 2, "length": (3,)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERPLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    """Documents of two domains, words and numbers."""
    draw = random.Random(0)
    documents = []
    for index in range(120):
        if index % 2:
            text = " ".join(draw.choice(["cat", "dog", "sees", "eats"]) for _ in range(draw.randint(4, 14)))
        else:
            text = " ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(2, 12)))
        documents.append({"text": text, "domain": "numbers" if index % 2 == 0 else "words"})
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter, digit or space."""
    symbols = ["<eos>", *string.ascii_lowercase, *string.digits, "Ġ"]  # the space of the byte alphabet
    words = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")


@pytest.fixture
def base(tiny_model, tokenizer):
    """`base(family)`: a tiny model with its tokenizer."""
    return lambda family: LanguageModel(tiny_model(family), tokenizer, name="tiny")


@pytest.fixture
def rows(corpus_file, tokenizer):
    return Rows.of(token_store(open_corpus(corpus_file), tokenizer, progress=False), 12)


def test_every_row_is_a_piece_of_one_document_and_no_token_is_in_two(rows):
    offsets = np.asarray(rows.store.offsets)
    document = np.searchsorted(offsets, rows.starts, side="right") - 1
    assert np.all(rows.starts + rows.length <= offsets[document + 1])
    assert np.all(np.diff(np.sort(rows.starts)) >= rows.length)
    assert len(rows) == sum(np.diff(offsets) // rows.length)
    assert np.array_equal(rows.domain, np.asarray(rows.store.document_domain)[document])
    tokens = np.asarray(rows.store.tokens)
    expected = [tokens[start : start + rows.length] for start in rows.starts[:5]]
    assert np.array_equal(rows.tokens(np.arange(5)).numpy(), np.stack(expected))


def test_an_epoch_reads_every_row_once_whatever_the_size_of_a_step(rows):
    words = rows.of_domain("words")
    assert set(words.domain) == {rows.store.domains.index("words")}
    drawn = torch.cat([words.batch((0, 1), step, len(words)) for step in range(2)])
    for epoch in drawn.split(len(words)):
        assert sorted(epoch.tolist()) == sorted(words.tokens(np.arange(len(words))).tolist())
    smaller = torch.cat([words.batch((0, 1), step, 5) for step in range(2 * len(words) // 5)])
    assert torch.equal(smaller, drawn[: len(smaller)])
    assert not torch.equal(words.batch((0, 2), 0, len(words)), drawn[: len(words)])


def test_rows_longer_than_every_document_are_refused(rows):
    with pytest.raises(PerplabError, match="no document has 500 tokens"):
        Rows.of(rows.store, 500)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_loss_of_a_prompt_is_the_cross_entropy_of_the_real_tokens(family, tiny_model):
    model = tiny_model(family)
    ids = torch.randint(1, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    vectors = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) * 0.3
    embedded = torch.cat((vectors.expand(3, -1, -1), model.get_input_embeddings()(ids)), dim=1)
    labels = torch.cat((torch.full((3, 5), -100), ids[:, 1:]), dim=1)
    expected = model(inputs_embeds=embedded, labels=labels, use_cache=False).loss
    torch.testing.assert_close(prompt_loss(model, vectors, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["dynamic", "single", "prefix", "ptuning", "lora"])
def test_training_lowers_the_loss_and_leaves_the_base_in_its_bytes(method, base, corpus_file, tmp_path):
    language_model = base("llama")
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    config = PromptConfig(**SHORT | {"steps": 60, "seed": 1}, method=method, learning_rate=0.03)
    made = prompt(language_model, corpus_file, config, out=tmp_path / "made")
    for name, tensor in language_model.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in language_model.model.parameters())
    figures = made.lineage.figures
    trained = [name.removeprefix("loss_first/") for name in figures if name.startswith("loss_first/")]
    assert set(trained) == ({"words", "numbers"} if method == "dynamic" else {method})
    for name in trained:
        assert figures[f"loss_last/{name}"] < figures[f"loss_first/{name}"]
    assert figures["tokens"] == len(trained) * 60 * 4 * 12
    assert made.lineage.verb == "prompt"
    loaded = perplab.load(tmp_path / "made")
    ids = torch.randint(1, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, made.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_packed_model_is_repaired_and_loaded_as_it_is(base, corpus_file, tmp_path):
    quantize(base("llama"), None, QuantizeConfig(method="rtn", bits=4, group_size=8), out=tmp_path / "packed")
    packed = perplab.load(tmp_path / "packed")
    made = prompt(packed, corpus_file, PromptConfig(**SHORT), out=tmp_path / "made")
    loaded = perplab.load(tmp_path / "made")
    weights = "base/model.safetensors"
    assert (tmp_path / "made" / weights).read_bytes() == (tmp_path / "packed" / "model.safetensors").read_bytes()
    ids = torch.randint(1, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, made.model(ids).logits, rtol=0, atol=0)
    with pytest.raises(PerplabError, match=r"PackedLinear.*before it is compressed"):
        prompt(packed, corpus_file, PromptConfig(**SHORT | {"method": "lora"}))


def test_keys_and_values_of_every_layer_are_as_many_as_a_prefix_has(base, corpus_file):
    made = prompt(base("llama"), corpus_file, PromptConfig(**SHORT, method="prefix"))
    (prefix,) = made.model.pool.prompts.values()
    assert prefix.shape == (2, 2, 2, 3, 8)  # layers, keys and values, key-value heads, tokens, head_dim
    assert made.lineage.figures["trained_parameters"] == prefix.numel()


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_what_peft_trains_is_read_here_as_peft_reads_it(family, tiny_model):
    ids = torch.randint(1, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    encoder = peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM")
    for config, latent_of in ((prefix, prefix_states), (encoder, encoded_prompt)):
        adapted = peft.get_peft_model(tiny_model(family), config).eval()
        expected = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -9:]
        model = tiny_model(family)
        cache = LatentCache.of(model, [latent_of(adapted)]).rows(torch.zeros(2, dtype=torch.long))
        torch.testing.assert_close(read_after(model, cache, ids, use_cache=True).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_killed_run_continues_to_the_same_bytes(base, corpus_file, tmp_path):
    config = PromptConfig(**SHORT | {"checkpoint_every": 2})

    def killed(what, done, total):
        if what == "numbers" and done == 5:
            raise RuntimeError("killed")

    whole = prompt(base("llama"), corpus_file, config, out=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        prompt(base("llama"), corpus_file, config, out=tmp_path / "killed", watch=killed)
    assert not (tmp_path / "killed").exists()
    seen = []
    resumed = prompt(base("llama"), corpus_file, config, out=tmp_path / "killed", watch=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "numbers"] == [("numbers", 5, 6), ("numbers", 6, 6)]
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert resumed.lineage.figures == whole.lineage.figures
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "killed", "whole"]


def test_an_interrupted_run_stops_after_the_step_under_way_and_keeps_it(base, corpus_file, tmp_path):
    def interrupt(what, done, total):
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    config, seen = PromptConfig(**SHORT | {"method": "single"}), []
    with pytest.raises(KeyboardInterrupt):
        prompt(base("llama"), corpus_file, config, out=tmp_path / "made", watch=interrupt)
    prompt(base("llama"), corpus_file, config, out=tmp_path / "made", watch=lambda *step: seen.append(step[1]))
    assert seen == [5, 6]


def test_a_refused_call_leaves_nothing_behind(base, corpus_file, tmp_path):
    with pytest.raises(PerplabError, match="unknown selector"):
        prompt(base("llama"), corpus_file, PromptConfig(**SHORT, selector="best"), out=tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_unfinished_run_with_other_settings_is_refused(base, corpus_file, tmp_path):
    def killed(what, done, total):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        prompt(base("llama"), corpus_file, PromptConfig(**SHORT), out=tmp_path / "made", watch=killed)
    with pytest.raises(PerplabError, match="unfinished run with other settings"):
        prompt(base("llama"), corpus_file, PromptConfig(**SHORT | {"seed": 5}), out=tmp_path / "made")


def test_a_finished_run_is_read_and_a_folder_of_another_is_refused(base, corpus_file, tmp_path):
    config, out = PromptConfig(**SHORT), tmp_path / "made"
    prompt(base("llama"), corpus_file, config, out=out)

    def no_work(*_):
        raise AssertionError("it was trained again")

    again = prompt(base("llama"), corpus_file, config, out=out, watch=no_work)
    assert isinstance(again.model, DynamicPrompting)
    for other in (PromptConfig(**SHORT | {"seed": 1}), PromptConfig(**SHORT | {"steps": 7})):
        with pytest.raises(PerplabError, match="not made by this run"):
            prompt(base("llama"), corpus_file, other, out=out, watch=no_work)
    with pytest.raises(PerplabError, match="not made by this run"):
        prompt(base("gpt2"), corpus_file, config, out=out, watch=no_work)
    write_json(tmp_path / "file.json", {})
    with pytest.raises(PerplabError, match="not made by this run"):
        prompt(base("llama"), corpus_file, config, out=tmp_path / "file.json", watch=no_work)


def test_calibrated_scores_are_standardised_on_the_text_they_are_calibrated_on(base, corpus_file, rows):
    made = prompt(base("llama"), corpus_file, PromptConfig(**SHORT, selector="attention_calibrated"))
    model = made.model
    mean, deviation = attention_statistics(model.base, model.latents, rows, context_tokens=4, layer=0, seed=3)
    model.config.attention_mean, model.config.attention_deviation = mean, deviation
    contexts = rows.batch((3,), 0, min(128, len(rows)))[:, :4]
    scores = model.config.selector_function()(model.base, model.latents, contexts, torch.ones_like(contexts))
    torch.testing.assert_close(scores.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(scores.std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)


def test_training_does_not_depend_on_the_global_generator(base, corpus_file):
    pools = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        pools.append([prompt(base("llama"), corpus_file, PromptConfig(**SHORT | {"method": method})).model.pool.prompts
                      for method in ("single", "prefix", "ptuning")])  # fmt: skip
    for first, second in zip(*pools, strict=True):
        for name, vectors in first.items():
            assert torch.equal(vectors, second[name])


def test_prompts_are_named_after_what_they_are_trained_on():
    domains = ("code", "prose")
    named = {one.name: (one.domain, one.length) for one in planned_prompts(PromptConfig(length=(4, 8)), domains)}
    assert named == {"code-1": ("code", 4), "prose-1": ("prose", 8), "code-2": ("code", 4)}
    mixed = planned_prompts(PromptConfig(slices="mixed", prompts=2), domains)
    assert [(one.name, one.domain) for one in mixed] == [("mixed-1", None), ("mixed-2", None)]
    assert [one.name for one in planned_prompts(PromptConfig(prompts=2), domains)] == ["code", "prose"]
    assert [one.name for one in planned_prompts(PromptConfig(method="single"), domains)] == ["single"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"slices": "half"}, "unknown slices 'half'"),
        ({"steps": 0}, "steps is 0"),
        ({"length": ()}, "length is"),
        ({"length": (4, 0)}, "length is"),
        ({"row_tokens": 1}, "row_tokens is 1"),
        ({"selector": "likelihood", "context_tokens": 1}, "no likelihood"),
        ({"selector": "attention_calibrated", "context_tokens": 65}, "context_tokens 65"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, words):
    with pytest.raises(PerplabError, match=words):
        PromptConfig(**wrong)


def test_what_would_fail_after_training_is_refused_before_it(base, corpus_file):
    def no_work(*_):
        raise AssertionError("something was trained")

    for family, settings, words in (
        ("llama", {"selector": "best"}, "unknown selector 'best'"),
        ("llama", {"layer": 9}, "layer 9"),
        ("bloom", {"selector": "attention"}, "select by likelihood"),
        ("gpt2", {"length": (2000,)}, "leaves none of the model's 1024 positions"),
    ):
        with pytest.raises(PerplabError, match=words):
            prompt(base(family), corpus_file, PromptConfig(**SHORT | settings), watch=no_work)


def test_a_loss_that_is_not_finite_is_named_with_its_step(base, corpus_file):
    broken = base("llama")
    with torch.no_grad():
        broken.model.model.norm.weight[0] = torch.nan
    with pytest.raises(PerplabError, match="is nan at step 0"):
        prompt(broken, corpus_file, PromptConfig(**SHORT | {"method": "single"}))


def test_the_command_writes_a_model_that_generates(base, corpus_file, tmp_path, capsys):
    base("llama").save(tmp_path / "base")
    config = PromptConfig(**SHORT)
    prompt_command(str(tmp_path / "base"), out=tmp_path / "made", corpus=corpus_file, config=config, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["figures"]["trained_parameters"] == 2 * 3 * 32
    made = perplab.load(tmp_path / "made")
    assert made.lineage.parent.fingerprint == perplab.load(tmp_path / "base").fingerprint
    settings = perplab.GenerateConfig(max_new_tokens=5, temperature=0)
    assert perplab.generate(made, "cat", settings) == perplab.generate(made, "cat", settings)
    prompt_command(str(tmp_path / "base"), out=tmp_path / "made", corpus=corpus_file, config=config)
    assert "192 parameters trained on 576 tokens" in capsys.readouterr().out
