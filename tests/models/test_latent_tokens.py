"""Latent tokens in front of a text, against a plain forward pass over their vectors and the text's embeddings."""

import pytest
import torch

from perplab.errors import PerplabError
from perplab.models.latent_tokens import LatentCache, read_after

LENGTHS = (3, 5, 0)


@pytest.fixture
def latents():
    """`latents(model)`: vectors in the place of embeddings, of several lengths, none among them."""

    def drawn(model):
        generator = torch.Generator().manual_seed(1)
        width = model.get_input_embeddings().weight.shape[1]
        return [torch.randn(length, width, generator=generator) * 0.3 for length in LENGTHS]

    return drawn


@pytest.fixture(scope="module")
def text():
    """Three rows of ids, the first and the last padded on the left, and their mask."""
    ids = torch.randint(1, 100, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[2, :1] = 0
    return ids * mask, mask


def plain_logits(model, vectors, ids):
    """(length, vocabulary) from one pass over everything, without a cache."""
    embedded = torch.cat((vectors, model.get_input_embeddings()(ids)))[None]
    return model(inputs_embeds=embedded, use_cache=False).logits[0, len(vectors) :]


@torch.no_grad()
def test_a_padded_batch_of_mixed_latents_equals_plain_passes_in_every_family(family, tiny_model, latents, text):
    model, (ids, mask) = tiny_model(family), text
    vectors = latents(model)
    order = [1, 0, 2]
    cache = LatentCache.of(model, vectors).rows(torch.tensor(order))
    logits = read_after(model, cache, ids, mask, use_cache=True).logits
    for row, number in enumerate(order):
        real = mask[row] > 0
        expected = plain_logits(model, vectors[number], ids[row][real])
        torch.testing.assert_close(logits[row][real], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_reading_token_by_token_equals_reading_at_once(family, tiny_model, latents, text):
    model, (ids, mask) = tiny_model(family), text
    cache = LatentCache.of(model, latents(model))
    at_once = read_after(model, cache.rows(torch.arange(3)), ids, mask, use_cache=True).logits
    growing = cache.rows(torch.arange(3))
    one_by_one = [
        read_after(model, growing, ids[:, at : at + 1], mask[:, : at + 1], use_cache=True).logits for at in range(7)
    ]
    real = mask > 0
    torch.testing.assert_close(torch.cat(one_by_one, dim=1)[real], at_once[real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_are_copies_and_reading_leaves_the_cache_they_came_from(tiny_model, latents, text):
    model, (ids, mask) = tiny_model("llama"), text
    cache = LatentCache.of(model, latents(model))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    read_after(model, cache.rows(torch.arange(3)), ids, mask, use_cache=True)
    assert cache.get_seq_length() == max(LENGTHS)
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@torch.no_grad()
def test_reordered_rows_are_the_rows_in_another_order(tiny_model, latents):
    cache = LatentCache.of(tiny_model("llama"), latents(tiny_model("llama")))
    order = torch.tensor([2, 0, 0])
    expected = cache.rows(order)
    cache.reorder_cache(order)
    assert torch.equal(cache.latent_mask, expected.latent_mask)
    for ours, theirs in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)


@torch.no_grad()
def test_latents_without_tokens_are_no_latents(tiny_model, latents, text):
    model, ids = tiny_model("gpt2"), text[0][1:2]
    empty = latents(model)[2]
    logits = read_after(model, LatentCache.of(model, [empty]), ids, use_cache=True).logits
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_keys_and_values_serve_as_the_vectors_they_come_from(family, tiny_model, latents, text):
    model, ids = tiny_model(family), text[0][1:2]
    vectors = latents(model)[0]
    cache = LatentCache.of(model, [vectors])
    states = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])
    given = read_after(model, LatentCache.of(model, [states]), ids, use_cache=True).logits
    torch.testing.assert_close(given, read_after(model, cache, ids, use_cache=True).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "perplab_decoder"])
def test_the_gradient_of_latents_matches_finite_differences(family, tiny_model, latents, text):
    model, ids = tiny_model(family).double(), text[0][1:2]
    vectors = latents(model)[0].double()

    def cost(given):
        logits = read_after(model, LatentCache.of(model, [given]), ids, use_cache=True).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])

    leaf = vectors.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(leaf), leaf)
    direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-3  # rotary angles and softmax are in float32 whatever the weights are
    with torch.no_grad():
        slope = (cost(vectors + step * direction) - cost(vectors - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-3, atol=1e-6)


def test_latents_of_another_width_are_refused_by_name_of_both(tiny_model):
    with pytest.raises(PerplabError, match=r"\(4, 31\) do not fit token embeddings of 32"):
        LatentCache.of(tiny_model("llama"), [torch.zeros(4, 31)])


def test_a_model_that_takes_tokens_alone_is_refused(tiny_model):
    model = tiny_model("llama")
    read = model.forward
    model.forward = lambda input_ids, attention_mask=None: read(input_ids, attention_mask)
    with pytest.raises(PerplabError, match="takes no vectors in the place of tokens"):
        LatentCache.of(model, [torch.zeros(4, 32)])
