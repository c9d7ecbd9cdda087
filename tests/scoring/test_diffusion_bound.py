"""Masked diffusion models under the verbs: a bound where a bound is meant, and a refusal where an exact cost is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig

from perplab.commands.compare import compare
from perplab.commands.generate import generate
from perplab.commands.score import score as score_command
from perplab.compression import QuantizeConfig, quantize
from perplab.errors import PerplabError
from perplab.evaluation.suite import evaluate
from perplab.models import LanguageModel, load
from perplab.models.diffusion import AbsorbingDiffusion, DiffusionConfig, DiffusionModel, order_nll
from perplab.models.diffusion.infilling import DiffusionGenerateConfig
from perplab.models.generation import GenerateConfig, fill_blanks
from perplab.models.generation import generate as continue_text
from perplab.scoring import TokenScores, score
from perplab.scoring.choices import score_choices
from perplab.scoring.comparison import compare_scores
from perplab.scoring.conventions import ANY_ORDER_BOUND, CONVENTIONS
from perplab.scoring.explain import explain
from perplab.scoring.perplexity import perplexity
from perplab.text import Document, open_corpus

TEXTS = ["one short text", "def f(x):\n    return x\n", "a", "the end of it, of it, of it"]
DOCUMENTS = [Document(text, f"domain {index % 2}", f"text {index}") for index, text in enumerate(TEXTS)]


@pytest.fixture
def diffusion(tiny_tokenizer):
    """A small network with random weights everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
        model = DiffusionModel(DiffusionConfig(vocab_size=len(tiny_tokenizer), **shape)).eval()
        torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    return LanguageModel(model, tiny_tokenizer, name="diffusion")


@pytest.fixture
def folder(diffusion, tmp_path):
    diffusion.save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def causal(tiny_model, tiny_tokenizer):
    return LanguageModel(tiny_model("llama"), tiny_tokenizer, name="causal")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def test_scores_are_shares_of_the_mean_cost_over_orders(diffusion):
    text = "some text"
    scores = score(diffusion, text, convention=replace(ANY_ORDER_BOUND, draws=600))
    ids = torch.tensor([diffusion.tokenizer.encode(text)])
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(text), generator=generator) for _ in range(300)]
    costs = np.array([float(order_nll(AbsorbingDiffusion(diffusion.model), ids, order)) for order in orders])
    assert scores.nats == pytest.approx(costs.mean(), rel=0.03)
    assert scores.origin["convention"] == "any-order-bound"
    assert scores.origin["draws"] == 600
    assert scores.tokens["token_id"].to_pylist() == ids[0].tolist()


def test_a_window_after_the_first_is_bounded_given_the_one_before(diffusion):
    scores = score(diffusion, "abcdefghij" * 12)
    assert scores.tokens["position"].to_pylist() == list(range(120))
    assert scores.tokens["window"].to_pylist() == [0] * 63 + [1] * 32 + [2] * 25
    assert scores.num_bytes == 120


def test_masks_depend_on_seed_and_text_and_on_nothing_else(diffusion):
    whole = score(diffusion, DOCUMENTS)
    again = score(diffusion, DOCUMENTS[1:], batch_tokens=64)
    shares = whole.nll[whole.tokens["document"].to_numpy() > 0]
    np.testing.assert_allclose(shares, again.nll, rtol=1e-4, atol=1e-5)
    other = score(diffusion, DOCUMENTS, convention=replace(ANY_ORDER_BOUND, seed=1))
    assert not np.allclose(whole.nll, other.nll)


def test_an_interrupted_run_goes_on_to_the_same_scores(diffusion, tmp_path, monkeypatch):
    monkeypatch.setattr("perplab.scoring.text_scores.PART_TOKENS", 20)
    whole = score(diffusion, DOCUMENTS)

    class StoppedError(Exception):
        pass

    def stop(tokens, num_bytes):
        if num_bytes == len(TEXTS[2]):
            raise StoppedError

    with pytest.raises(StoppedError):
        score(diffusion, DOCUMENTS, out=tmp_path / "scores", watch=stop)
    np.testing.assert_array_equal(score(diffusion, DOCUMENTS, out=tmp_path / "scores").nll, whole.nll)
    assert TokenScores.read(tmp_path / "scores").origin["seed"] == 0


def test_the_perplexity_is_named_an_upper_bound(diffusion):
    found = perplexity(diffusion, DOCUMENTS)
    assert found.unit == "upper bound on token perplexity"
    assert found.is_upper_bound
    assert found.interval.low < found.value < found.interval.high
    assert not perplexity(load("pocket"), DOCUMENTS).is_upper_bound
    assert perplexity(score(diffusion, DOCUMENTS)).unit == "upper bound on token perplexity"


def test_the_command_names_a_bound_in_text_table_and_json(folder, corpus, capsys):
    score_command("one text", model=folder, draws=4)
    shown = capsys.readouterr().out
    assert "perplexity at most" in shown
    assert "(upper bound from 4 masks a window)" in shown
    score_command(corpus=corpus, model=folder)
    assert "any-order-bound" in (shown := capsys.readouterr().out)
    assert "upper bound on" in shown
    score_command(corpus=corpus, model=folder, as_json=True, draws=8, seed=3)
    found = json.loads(capsys.readouterr().out)
    assert found["is_upper_bound"] is True
    assert (found["draws"], found["seed"], found["convention"]) == (8, 3, "any-order-bound")


def test_a_comparison_says_which_side_is_a_bound(diffusion, causal):
    compared = compare_scores(score(causal, DOCUMENTS), score(diffusion, DOCUMENTS))
    assert (compared.first.is_upper_bound, compared.second.is_upper_bound) == (False, True)
    assert compared.same_tokens
    difference = compared.second.nats - compared.first.nats
    assert sum(row.change for row in compared.by_domain) == pytest.approx(difference, rel=1e-5)


def test_the_compare_command_says_so_too_and_asks_for_no_tasks(folder, causal, corpus, tmp_path, capsys):
    from perplab.evaluation.comparing import CompareConfig

    causal.save(tmp_path / "causal")
    other = str(tmp_path / "causal")
    compare(other, folder, corpus=corpus, split="all", config=CompareConfig(tasks=False, rounds=1), progress=False)
    shown = capsys.readouterr().out
    assert "at most" in shown
    assert "B is a masked diffusion model: its cost is an upper bound" in shown
    with pytest.raises(PerplabError, match="--no-tasks"):
        compare(other, folder, corpus=corpus, split="all", config=CompareConfig(), progress=False)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_exact_convention_is_refused(diffusion, convention):
    with pytest.raises(PerplabError, match="no exact log-probability of a text: take the upper bound of perplab score"):
        score(diffusion, "some text", convention=convention)


def test_whatever_needs_an_exact_log_probability_is_refused(diffusion, folder):
    with pytest.raises(PerplabError, match="no exact log-probability"):
        list(score_choices(diffusion, [("one", (" two", " three"))]))
    with pytest.raises(PerplabError, match="no exact log-probability"):
        evaluate(diffusion, list(open_corpus("builtin:all", "heldout").limited(60_000)))
    with pytest.raises(PerplabError, match="no exact log-probability"):
        explain(diffusion, "some text", "perplab", "hf-stride")
    with pytest.raises(PerplabError, match="perplab_radd"):
        quantize(load(folder), config=QuantizeConfig(method="rtn"))
    with pytest.raises(PerplabError, match="a bound on cost and no rank"):
        score(diffusion, "some text", metrics=("rank",))


def test_a_bound_of_a_model_with_exact_costs_is_refused(causal, corpus):
    with pytest.raises(PerplabError, match="its costs are exact and need no any-order-bound"):
        score(causal, "some text", convention="any-order-bound")
    with pytest.raises(PerplabError, match="leave --draws out"):
        score_command("some text", draws=8)


def test_a_masked_language_model_from_elsewhere_reads_its_own_special_tokens(tiny_tokenizer, tmp_path):
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"})
    ends = [(token, tiny_tokenizer.convert_tokens_to_ids(token)) for token in ("<cls>", "<sep>")]
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<cls> $A <sep>", special_tokens=ends)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
        )
        model = AutoModelForMaskedLM.from_config(config).eval()
    LanguageModel(model, tiny_tokenizer).save(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model) is type(model)
    scores = score(loaded, "abcdefghij" * 5, convention=replace(ANY_ORDER_BOUND, draws=40))
    assert scores.tokens["position"].to_pylist() == list(range(50))
    assert scores.perplexity == pytest.approx(len(tiny_tokenizer), rel=0.2)
    filled = fill_blanks(loaded, "ab", GenerateConfig(max_new_tokens=5), DiffusionGenerateConfig(suffix="yz"))
    assert filled.text.startswith("ab")
    assert filled.text.endswith("yz")


def test_a_continuation_has_so_many_tokens_and_the_same_seed_gives_it_again(diffusion):
    config = GenerateConfig(max_new_tokens=12, temperature=1.0, top_p=1.0)
    found = fill_blanks(diffusion, "ab", config, DiffusionGenerateConfig(steps=5))
    assert found == fill_blanks(diffusion, "ab", config, DiffusionGenerateConfig(steps=5))
    assert found.tokens == 12
    assert found.evaluations <= 5
    assert found.expected_evaluations == pytest.approx(5 * (1 - 0.8**12), rel=1e-3)
    assert found.text == "ab" + found.fills[0]
    pieces = []
    assert continue_text(diffusion, "ab", config, show=pieces.append) == "".join(pieces)


def test_blanks_anywhere_are_filled_and_the_text_around_them_stays(diffusion):
    config = GenerateConfig(max_new_tokens=3, temperature=1.0)
    found = fill_blanks(diffusion, "x = [M][M] + ___;", config, DiffusionGenerateConfig(infill=True, method="ordered"))
    assert found.text == f"x = {found.fills[0]}{found.fills[1]} + {found.fills[2]};"
    assert found.tokens == found.evaluations == 5
    assert found.expected_evaluations == 5


def test_the_generate_command_fills_in_and_counts(folder, capsys):
    config = GenerateConfig(max_new_tokens=4)
    generate("ab___yz", model=folder, config=config, diffusion=DiffusionGenerateConfig(infill=True, steps=3))
    shown = capsys.readouterr()
    assert shown.out.startswith("ab")
    assert shown.out.endswith("yz\n")
    assert "4 tokens in" in shown.err
    generate("ab", model=folder, config=config, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "ab" + found["fills"][0]
    assert math.isfinite(found["expected_evaluations"])


def test_what_cannot_be_filled_in_is_refused(diffusion, causal):
    with pytest.raises(PerplabError, match="no blank to fill"):
        fill_blanks(diffusion, "ab", diffusion=DiffusionGenerateConfig(infill=True))
    with pytest.raises(PerplabError, match="cannot fill in blanks"):
        fill_blanks(causal, "ab", diffusion=DiffusionGenerateConfig(steps=3))
    with pytest.raises(PerplabError, match="exceed the model's 64 positions"):
        fill_blanks(diffusion, "ab", GenerateConfig(max_new_tokens=63))
    with pytest.raises(PerplabError, match="a suffix to a text with blanks"):
        DiffusionGenerateConfig(suffix="a", infill=True)
    with pytest.raises(PerplabError, match="steps is 0"):
        DiffusionGenerateConfig(steps=0)


def test_a_tokenizer_that_spells_the_mask_is_refused(diffusion):
    diffusion.tokenizer.add_tokens(["<new>"])
    with pytest.raises(PerplabError, match="the last of them the model's mask token"):
        score(diffusion, "some text")
