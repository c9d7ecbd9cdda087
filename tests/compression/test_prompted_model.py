"""A model that reads every text after the prompt that suits it, under the contract of causal LMs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import perplab
from perplab.compression.prompts import DynamicPrompting, PromptedConfig, SoftPromptPool
from perplab.compression.prompts.selectors import token_costs
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request

READ = ["llama", "gpt2", "opt-projected", "bloom", "falcon-sequential", "gemma2", "perplab_decoder"]
CONTEXT = 4


def pool_for(model, lengths=(3, 5, 4), seed=1):
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    names = ("first", "second", "third")
    vectors = [torch.randn(length, width, generator=generator) * 0.3 for length in lengths]
    return SoftPromptPool(dict(zip(names, vectors, strict=False)))


@pytest.fixture
def prompted(tiny_model, tiny_tokenizer):
    """`prompted(family, **choices)`: a tiny model behind three prompts."""

    def build(family, pool=None, **choices):
        base = tiny_model(family)
        pool = pool or pool_for(base)
        settings = {"selector": "likelihood", "context_tokens": CONTEXT} | choices
        config = PromptedConfig.for_base(base, pool.lengths, **settings)
        return DynamicPrompting(config, LanguageModel(base, tiny_tokenizer), pool).eval()

    return build


@pytest.fixture(scope="module")
def text():
    """Four rows of ids, the first and third padded on the left, and their mask."""
    ids = torch.randint(1, 100, (4, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[2, :3] = 0
    return ids * mask, mask


def plain_logits(model, number, ids):
    """(length, vocabulary) of a row after a prompt, from one pass over vectors without a cache."""
    prompt = model.prompts[number]
    embedded = torch.cat((prompt, model.base.get_input_embeddings()(ids)))[None]
    return model.base(inputs_embeds=embedded, use_cache=False).logits[0, len(prompt) :]


@torch.no_grad()
@pytest.mark.parametrize("family", READ)
def test_one_prompt_is_plain_prompt_tuning(family, prompted, tiny_model, text):
    model = prompted(family, pool_for(tiny_model(family), (5,)))
    ids = text[0][1:2]
    torch.testing.assert_close(model(ids).logits[0], plain_logits(model, 0, ids[0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", READ)
def test_a_padded_batch_of_mixed_choices_equals_plain_passes(family, prompted, text):
    model, (ids, mask) = prompted(family), text
    choice = torch.tensor([2, 0, 1, 1])
    output = model(ids, mask, choice=choice)
    assert torch.equal(output.choice, choice)
    for row in range(4):
        real = mask[row] > 0
        expected = plain_logits(model, int(choice[row]), ids[row][real])
        torch.testing.assert_close(output.logits[row][real], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("selector", ["attention", "likelihood", "random"])
def test_a_choice_costs_nothing_to_the_tokens_it_is_made_by(selector, prompted, text):
    model, (ids, mask) = prompted("llama", selector=selector), text
    output = model(ids, mask)
    for row in range(4):
        real = ids[row][mask[row] > 0]
        choice = int(model.choose(real[None, :CONTEXT])[0])
        assert int(output.choice[row]) == choice
        expected = plain_logits(model, choice, real)
        expected[: CONTEXT - 1] = plain_logits(model, 0, real)[: CONTEXT - 1]
        torch.testing.assert_close(output.logits[row][mask[row] > 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_stands_to_the_right_changes_nothing(prompted, text):
    model, ids = prompted("llama"), text[0][1:2]
    whole = model(ids).logits[0]
    assert int(model(ids).choice) != 0, "the first prompt was chosen: this would show nothing"
    for length in range(1, 9):
        torch.testing.assert_close(model(ids[:, :length]).logits[0], whole[:length], rtol=1e-4, atol=1e-5)
        other = torch.cat((ids[:, :length], (ids[:, length:] + 50) % 100), dim=1)
        torch.testing.assert_close(model(other).logits[0, :length], whole[:length], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", READ)
def test_greedy_continuations_equal_recomputing_every_step_without_a_cache(family, prompted, text):
    model, (ids, mask) = prompted(family), text
    choice = torch.tensor([2, 0, 1, 1])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    found = model.generate(ids, attention_mask=mask, choice=choice, **options)
    for row in range(4):
        sequence = ids[row][mask[row] > 0]
        for _ in range(5):
            following = plain_logits(model, int(choice[row]), sequence)[-1].argmax()
            sequence = torch.cat((sequence, following[None]))
        assert found[row][9 - int(mask[row].sum()) :].tolist() == sequence.tolist()


@torch.no_grad()
def test_a_continuation_comes_after_the_prompt_chosen_on_the_whole_context(prompted, text):
    model, (ids, mask) = prompted("llama"), text
    choice = model.choose(ids, mask)
    assert len(set(choice.tolist())) > 1, "one prompt for all rows: this would show little"
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, choice=choice, **options))


@torch.no_grad()
def test_beams_keep_their_rows_prompt(prompted, text):
    model, (ids, mask) = prompted("llama"), text
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **options)
    for row in range(4):
        real = ids[row][mask[row] > 0][None]
        alone = model.generate(real, attention_mask=torch.ones_like(real), **options)
        assert together[row][-4:].tolist() == alone[0][-4:].tolist()


@torch.no_grad()
def test_identical_prompts_make_every_choice_the_same(prompted, tiny_model, text):
    vectors = pool_for(tiny_model("llama")).prompts["first"]
    model = prompted("llama", SoftPromptPool({"a": vectors, "b": vectors.clone()}))
    ids = text[0][1:2]
    first, second = (model(ids, choice=torch.tensor([number])).logits for number in (0, 1))
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_loss_is_the_mean_cost_of_the_labelled_tokens(prompted, text):
    model, ids = prompted("gpt2"), text[0][1:2]
    labels = ids.clone()
    labels[:, :3] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, 2:-1], ids[0, 3:])
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_logits_to_keep_are_the_last_of_all(prompted, text):
    model, ids = prompted("llama"), text[0][1:2]
    for choice in (None, torch.tensor([1])):
        whole = model(ids, choice=choice).logits
        torch.testing.assert_close(model(ids, choice=choice, logits_to_keep=2).logits, whole[:, -2:])


@torch.no_grad()
def test_hidden_states_belong_to_the_prompt_their_logits_belong_to(prompted, text):
    model, ids = prompted("llama"), text[0][1:2]
    output = model(ids, output_hidden_states=True)
    assert int(output.choice) != 0
    torch.testing.assert_close(model.base.lm_head(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize("selector", ["attention", "likelihood"])
def test_the_scoring_engine_gives_the_costs_of_plain_forward_passes(selector, prompted):
    model = prompted("llama", selector=selector)
    generator = np.random.default_rng(0)
    lengths = [(1, 1), (1, 20), (3, 1), (7, 12), (2, 30), (5, 2)]
    requests = [Request(*(generator.integers(1, 100, n).astype(np.int32) for n in pair)) for pair in lengths]
    for budget in (None, 40):
        scores = score_requests(model_of(model), requests, batch_tokens=budget)
        for request, found in zip(requests, scores, strict=True):
            whole = torch.from_numpy(np.concatenate((request.context, request.continuation))).long()
            with torch.no_grad():
                logits = model(whole[None, :-1]).logits[0, len(request.context) - 1 :]
            expected = torch.nn.functional.cross_entropy(logits, whole[len(request.context) :], reduction="none")
            np.testing.assert_allclose(found["nll"], expected.numpy(), rtol=1e-4, atol=1e-4)


def model_of(prompted_model):
    return LanguageModel(prompted_model, prompted_model.base_language_model.tokenizer)


@torch.no_grad()
def test_no_selector_beats_the_oracle_or_loses_to_the_worst_choice(prompted):
    ids = torch.randint(1, 100, (24, 12), generator=torch.Generator().manual_seed(9))
    costs = None
    for selector in ("attention", "likelihood", "random", "second"):
        model = prompted("llama", selector=selector)
        costs = token_costs(model.base, model.latents, ids, torch.ones_like(ids))[..., CONTEXT - 1 :].mean(-1)
        choice = model.choose(ids[:, :CONTEXT])
        chosen = model(ids, choice=choice).logits[:, CONTEXT - 1 : -1]
        paid = torch.nn.functional.cross_entropy(chosen.transpose(1, 2), ids[:, CONTEXT:], reduction="none").mean(-1)
        assert torch.all(costs.min(1).values <= paid + 1e-4)
        assert torch.all(paid <= costs.max(1).values + 1e-4)


def test_a_saved_model_comes_back_with_its_base_in_the_same_bytes(prompted, tmp_path, text):
    model = prompted("llama", selector="attention_calibrated", attention_mean=[0.1] * 3, attention_deviation=[0.2] * 3)
    base = model.base_language_model
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    model_of(model).save(tmp_path / "saved")
    assert base.path is None
    loaded = perplab.load(tmp_path / "saved")
    for name, tensor in loaded.model.base.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert loaded.model.config.prompt_names == ["first", "second", "third"]
    with torch.no_grad():
        ours, theirs = model(*text), loaded.model(*text)
    assert torch.equal(ours.choice, theirs.choice)
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=0, atol=0)
    model_of(loaded.model).save(tmp_path / "again")
    for file in ("config.json", "model.safetensors", "base/model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_new_process_loads_a_saved_model(prompted, tmp_path, tiny_tokenizer):
    LanguageModel(prompted("llama"), tiny_tokenizer).save(tmp_path / "model")
    code = f"import perplab; print(type(perplab.load({str(tmp_path / 'model')!r}).model).__name__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "DynamicPrompting", done.stderr


def test_a_fingerprint_tells_prompts_and_bases_apart(prompted, tiny_model, tmp_path):
    first = prompted("llama")
    other_prompts = prompted("llama", pool_for(tiny_model("llama"), seed=2))
    other_base = prompted("llama")
    with torch.no_grad():
        other_base.base.model.norm.weight.add_(1.0)
    in_memory = {model_of(model).fingerprint for model in (first, other_prompts, other_base)}
    on_disk = set()
    for number, model in enumerate((first, other_prompts, other_base)):
        model_of(model).save(tmp_path / str(number))
        on_disk.add(perplab.load(tmp_path / str(number)).fingerprint)
    assert len(in_memory) == len(on_disk) == 3


def test_moving_the_model_to_another_dtype_moves_what_it_reads_first(prompted, text):
    model = prompted("llama").to(torch.float64)
    assert model(*text).logits.dtype == torch.float64


def test_positions_are_what_the_longest_prompt_leaves(prompted, tiny_model):
    base = tiny_model("gpt2")
    assert prompted("gpt2").config.max_position_embeddings == base.config.max_position_embeddings - 5
    with pytest.raises(PerplabError, match="leaves none of the model's 1024 positions"):
        PromptedConfig.for_base(base, {"long": 1024})


def test_what_cannot_be_chosen_by_is_refused(prompted, tiny_model):
    model = prompted("llama")
    with pytest.raises(PerplabError, match="without a token"):
        model.choose(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(PerplabError, match="without a token"):
        model.choose(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(PerplabError, match=r"unknown selector 'best'.*first, second, third"):
        prompted("llama", selector="best")
    with pytest.raises(PerplabError, match="do not fit token embeddings of 32"):
        prompted("llama", SoftPromptPool({"narrow": torch.zeros(2, 8)}))
    with pytest.raises(PerplabError, match="not calibrated"):
        prompted("llama", selector="attention_calibrated")
    read_without = tiny_model("llama")(torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(PerplabError, match="without a prompt"):
        model(torch.ones(1, 1, dtype=torch.long), past_key_values=read_without)


def test_pools_refuse_what_cannot_be_read_together():
    with pytest.raises(PerplabError, match="without a prompt"):
        SoftPromptPool({})
    with pytest.raises(PerplabError, match="widths 2, 3"):
        SoftPromptPool({"a": torch.zeros(1, 2), "b": torch.zeros(1, 3)})
    with pytest.raises(PerplabError, match="no prompt is called 'c'"):
        SoftPromptPool({"a": torch.zeros(1, 2)}).only(["c"])


@torch.no_grad()
def test_concatenated_prompts_are_read_one_after_another(prompted, tiny_model, text):
    base, ids = tiny_model("llama"), text[0][1]
    pool = pool_for(base)
    model = prompted("llama", pool.concatenated())
    embedded = torch.cat((*pool.prompts.values(), base.get_input_embeddings()(ids)))[None]
    expected = base(inputs_embeds=embedded).logits[0, sum(pool.lengths.values()) :]
    torch.testing.assert_close(model(ids[None]).logits[0], expected, rtol=1e-4, atol=1e-5)
