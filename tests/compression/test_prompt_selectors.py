"""Scores of prompts for a context, against eager attention and plain cross entropy."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from perplab.compression.prompts.attention_to_latents import attention_to_latents
from perplab.compression.prompts.selectors import (
    attention_scores,
    fixed_scores,
    likelihood_scores,
    random_scores,
    token_costs,
)
from perplab.errors import PerplabError
from perplab.models.latent_tokens import LatentCache

SEEN = ["llama", "gpt2", "opt-post-norm", "gpt_neox", "qwen3", "gemma2", "phi", "mixtral"]


def drawn_prompts(model, lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    return [torch.randn(length, width, generator=generator) * 0.3 for length in lengths]


@pytest.fixture(scope="module")
def text():
    """Three contexts, the first padded on the left, and their mask."""
    ids = torch.randint(1, 100, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids * mask, mask


def eager_attention(model, embedded, mask, position_ids, layer):
    """(heads, length, length) of one row, from transformers' own eager attention."""
    eager = deepcopy(model)
    eager.set_attn_implementation("eager")
    output = eager(
        inputs_embeds=embedded[None],
        attention_mask=mask,
        position_ids=position_ids[None],
        use_cache=False,
        output_attentions=True,
    )
    return output.attentions[layer][0]


@torch.no_grad()
@pytest.mark.parametrize("family", SEEN)
def test_scores_equal_eager_attention_over_prompts_stacked_without_seeing_each_other(family, tiny_model, text):
    model, (ids, mask) = tiny_model(family), text
    prompts = drawn_prompts(model, (4, 4, 4))
    found = attention_to_latents(model, LatentCache.of(model, prompts), ids, mask, layer=0)
    for row in range(len(ids)):
        real = ids[row][mask[row] > 0]
        embedded = torch.cat((*prompts, model.get_input_embeddings()(real)))
        positions = torch.cat((torch.arange(4).repeat(3), 4 + torch.arange(len(real))))
        owner = torch.cat((torch.arange(3).repeat_interleave(4), torch.full((len(real),), 3)))
        sees = (owner[:, None] == owner) | (owner[:, None] == 3)
        sees &= torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
        additive = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        weights = eager_attention(model, embedded, additive[None, None], positions, 0)[:, 12:, :12]
        expected = weights.unflatten(-1, (3, 4)).mean((0, 1, 3))
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", SEEN)
def test_a_deeper_layers_score_of_one_prompt_is_its_mean_eager_attention(family, tiny_model, text):
    model, ids = tiny_model(family), text[0][1:2]
    (prompt,) = drawn_prompts(model, (5,))
    found = attention_to_latents(model, LatentCache.of(model, [prompt]), ids, torch.ones_like(ids), layer=1)
    embedded = torch.cat((prompt, model.get_input_embeddings()(ids[0])))
    weights = eager_attention(model, embedded, torch.ones(1, 12), torch.arange(12), 1)
    torch.testing.assert_close(found[0, 0], weights[:, 5:, :5].mean(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_token_of_a_long_prompt_counts_like_one_of_a_short_prompt(tiny_model, text):
    model, (ids, mask) = tiny_model("opt"), text
    attention = model.model.decoder.layers[0].self_attn
    attention.q_proj.weight.zero_()
    attention.q_proj.bias.zero_()  # every token is looked at alike
    cache = LatentCache.of(model, drawn_prompts(model, (2, 6)))
    found = attention_to_latents(model, cache, ids[1:], mask[1:])
    uniform = torch.tensor([1 / (2 + 6 + seen) for seen in range(1, 8)]).mean()
    torch.testing.assert_close(found, uniform.expand(2, 2))


@torch.no_grad()
@pytest.mark.parametrize("family", SEEN)
@pytest.mark.parametrize("layer", [0, 1])
def test_identical_prompts_have_equal_scores(family, layer, tiny_model, text):
    model = tiny_model(family)
    prompt = drawn_prompts(model, (4,))
    found = attention_to_latents(model, LatentCache.of(model, prompt * 3), *text, layer)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 3), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("selector", [attention_scores(0), attention_scores(1), likelihood_scores])
def test_scores_follow_the_order_of_the_prompts(selector, tiny_model, text):
    model = tiny_model("llama")
    prompts = drawn_prompts(model, (3, 5, 4))
    order = [2, 0, 1]
    found = selector(model, LatentCache.of(model, prompts), *text)
    permuted = selector(model, LatentCache.of(model, [prompts[index] for index in order]), *text)
    torch.testing.assert_close(permuted, found[:, order], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("rigged", [0, 1, 2])
def test_a_prompt_whose_keys_are_what_all_queries_look_for_is_chosen(rigged, tiny_model, text):
    model, (ids, mask) = tiny_model("opt"), text
    model.model.decoder.layers[0].self_attn.q_proj.bias.fill_(3.0)  # a direction that all queries share
    cache = LatentCache.of(model, drawn_prompts(model, (4, 4, 4)))
    cache.layers[0].keys[rigged] = 100.0
    found = attention_to_latents(model, cache, ids, mask)
    assert found.argmax(-1).tolist() == [rigged] * 3
    torch.testing.assert_close(found[:, rigged], torch.full((3,), 1 / 4))


@torch.no_grad()
def test_a_long_context_is_scored_as_if_it_were_held_at_once(tiny_model, text, monkeypatch):
    model, (ids, mask) = tiny_model("llama"), text
    cache = LatentCache.of(model, drawn_prompts(model, (3, 5)))
    at_once = attention_to_latents(model, cache, ids, mask)
    monkeypatch.setattr("perplab.compression.prompts.attention_to_latents._QUERIES", 3)
    torch.testing.assert_close(attention_to_latents(model, cache, ids, mask), at_once)
    assert attention_to_latents(model, cache, ids[:, -1:], mask[:, -1:]).shape == (3, 2)


@torch.no_grad()
def test_padding_changes_no_score(tiny_model, text):
    model, (ids, mask) = tiny_model("gpt2"), text
    cache = LatentCache.of(model, drawn_prompts(model, (3, 5)))
    for selector in (attention_scores(0), attention_scores(1), likelihood_scores, random_scores(0)):
        padded = selector(model, cache, ids, mask)[0]
        alone = selector(model, cache, ids[:1, 2:], mask[:1, 2:])[0]
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_models_own_attention_is_put_back(tiny_model, text):
    model = tiny_model("llama")
    before, logits = model.config._attn_implementation, model(text[0]).logits
    attention_to_latents(model, LatentCache.of(model, drawn_prompts(model, (3,))), *text)
    assert model.config._attn_implementation == before
    assert torch.equal(model(text[0]).logits, logits)


@pytest.mark.parametrize("family", ["bloom", "falcon", "perplab_decoder"])
def test_families_that_compute_attention_by_themselves_are_referred_to_likelihood(family, tiny_model, text):
    model = tiny_model(family)
    with pytest.raises(PerplabError, match=f"{family}.*likelihood"):
        attention_to_latents(model, LatentCache.of(model, drawn_prompts(model, (3,))), *text)


def test_a_layer_that_the_model_has_not_is_refused(tiny_model, text):
    model = tiny_model("llama")
    with pytest.raises(PerplabError, match="layer 2 of a model with 2"):
        attention_to_latents(model, LatentCache.of(model, drawn_prompts(model, (3,))), *text, layer=2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "opt", "bloom"])
def test_costs_after_each_prompt_are_cross_entropies_of_plain_passes(family, tiny_model, text):
    model, (ids, mask) = tiny_model(family), text
    prompts = drawn_prompts(model, (3, 5))
    costs = token_costs(model, LatentCache.of(model, prompts), ids, mask)
    likelihood = likelihood_scores(model, LatentCache.of(model, prompts), ids, mask)
    for row in range(3):
        real = ids[row][mask[row] > 0]
        for number, prompt in enumerate(prompts):
            embedded = torch.cat((prompt, model.get_input_embeddings()(real)))[None]
            logits = model(inputs_embeds=embedded, use_cache=False).logits[0, len(prompt) : -1]
            expected = torch.nn.functional.cross_entropy(logits, real[1:], reduction="none")
            found = costs[row, number]
            torch.testing.assert_close(found[len(found) - len(expected) :], expected, rtol=1e-4, atol=1e-4)
            assert not found[: len(found) - len(expected)].any()
            torch.testing.assert_close(likelihood[row, number], -expected.mean(), rtol=1e-4, atol=1e-4)


def test_one_token_has_no_likelihood(tiny_model):
    model = tiny_model("llama")
    cache = LatentCache.of(model, drawn_prompts(model, (3,)))
    with pytest.raises(PerplabError, match="2 tokens or more"):
        likelihood_scores(model, cache, torch.tensor([[5]]), torch.tensor([[1]]))


def test_random_choices_are_a_texts_own_and_evenly_spread(tiny_model):
    model = tiny_model("llama")
    cache = LatentCache.of(model, drawn_prompts(model, (3, 3, 3)))
    ids = torch.randint(1, 100, (600, 5), generator=torch.Generator().manual_seed(0))
    choice = random_scores(0)(model, cache, ids, torch.ones_like(ids)).argmax(-1)
    again = random_scores(0)(model, cache, ids.flip(0), torch.ones_like(ids)).argmax(-1).flip(0)
    assert torch.equal(choice, again)
    assert not torch.equal(choice, random_scores(1)(model, cache, ids, torch.ones_like(ids)).argmax(-1))
    counts = np.bincount(choice.numpy(), minlength=3)
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(600 * (1 / 3) * (2 / 3)))  # five standard deviations


def test_a_fixed_prompt_is_every_texts(tiny_model, text):
    model = tiny_model("llama")
    cache = LatentCache.of(model, drawn_prompts(model, (3, 3, 3)))
    assert fixed_scores(2)(model, cache, *text).argmax(-1).tolist() == [2, 2, 2]
