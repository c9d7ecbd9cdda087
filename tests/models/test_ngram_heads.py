import pytest
import torch
from transformers import AutoModelForCausalLM

from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.decoder_config import DecoderConfig
from perplab.models.mixers.context import SequenceContext
from perplab.models.ngram_heads import NGramHead, NGramHeads
from perplab.models.ngram_insertion import insert_ngram_heads
from perplab.models.ngram_model import NGramForCausalLM
from perplab.text.packing import IGNORED_LABEL

VOCABULARY = 11


@pytest.fixture
def decoder():
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        ngram_heads=[[1, 2, 3], [2]],
    )
    return loud(DecoderForCausalLM(config).eval())


def loud(model):
    """Weights so large that every part shows in the logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def text(batch=2, length=24, seed=0):
    return torch.randint(1, 5, (batch, length), generator=torch.Generator().manual_seed(seed))


def packed(input_ids, position_ids=None):
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids) if position_ids is None else position_ids
    return SequenceContext(positions, None, True, None, None, None, input_ids)


class Alone:
    """A config of heads without norms that change anything."""

    hidden_size = VOCABULARY
    rms_norm_eps = 0.0
    ngram_separator = None

    def __init__(self, orders):
        self.ngram_heads = [orders]


def counting_heads(orders):
    """Heads with W_a = I and W_b = 0 that read token ids as one-hot vectors."""
    heads = NGramHeads(Alone(orders), 0)
    heads.set_to_zero()
    for head, norm in zip(heads.heads, heads.norms, strict=True):
        torch.nn.init.eye_(head.follower_proj.weight)
        torch.nn.init.constant_(norm.weight, VOCABULARY**-0.5)  # of a one-hot vector nothing but this is left
    return heads


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_head_on_one_hot_tokens_is_the_in_context_maximum_likelihood_ngram_model(order):
    ids = text(length=60)
    one_hot = torch.eye(VOCABULARY)[ids]
    added = counting_heads([order])(one_hot, packed(ids)) - one_hot
    for row, tokens in enumerate(ids.tolist()):
        for t in range(len(tokens)):
            context = tokens[t - order + 1 : t + 1] if t >= order - 1 else None
            followers = [tokens[s] for s in range(order, t) if tokens[s - order : s] == context]
            counts = torch.bincount(torch.tensor(followers, dtype=torch.long), minlength=VOCABULARY).float()
            assert torch.allclose(added[row, t], counts / max(len(followers), 1), atol=1e-6)


def test_a_new_ngram_gets_the_current_state_alone():
    ids = torch.arange(10)[None]  # no token comes twice
    heads = loud(NGramHeads(Alone([1]), 0))
    states = torch.randn(1, 10, VOCABULARY)
    expected = states + heads.heads[0].current_proj(heads.norms[0](states))
    assert torch.allclose(heads(states, packed(ids)), expected)


def test_the_future_changes_nothing(decoder):
    ids = text()
    changed = ids.clone()
    changed[:, 15:] = text(seed=1)[:, 15:]
    assert torch.allclose(decoder(ids).logits[:, :15], decoder(changed).logits[:, :15], atol=1e-5)


def test_packed_documents_do_not_match_into_each_other(decoder):
    first, second = text(1, 10), text(1, 14, seed=1)
    positions = torch.cat((torch.arange(10), torch.arange(14)))[None]
    together = decoder(torch.cat((first, second), 1), position_ids=positions).logits
    apart = torch.cat((decoder(first).logits, decoder(second).logits), 1)
    assert torch.allclose(together, apart, atol=1e-5)


@pytest.mark.parametrize("pieces", [(23, 1), (1,) * 24, (7, 5, 12)])
def test_a_text_read_in_pieces_is_the_text_read_at_once(decoder, pieces):
    ids, cache, logits = text(), None, []
    for piece in ids.split(pieces, 1):
        output = decoder(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    assert torch.allclose(torch.cat(logits, 1), decoder(ids).logits, atol=1e-5)


def test_rows_of_a_cache_follow_beams(decoder):
    ids, beams = text(3), torch.tensor([2, 0, 0])
    cache = decoder(ids[:, :20], use_cache=True).past_key_values
    cache.reorder_cache(beams)
    continued = decoder(ids[beams, 20:], past_key_values=cache).logits
    assert torch.allclose(continued, decoder(ids[beams]).logits[:, 20:], atol=1e-5)


def test_left_padding_is_in_no_ngram(decoder):
    ids = text(1)
    padded = torch.cat((ids[:, :6], ids), 1)  # padding that would match, were it text
    mask = torch.ones_like(padded)
    mask[:, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = decoder(padded, attention_mask=mask, position_ids=positions).logits[:, 6:]
    assert torch.allclose(logits, decoder(ids).logits, atol=1e-5)


def test_every_weight_of_a_head_learns_from_packed_rows(decoder):
    ids = text() % 2  # two kinds of tokens: every order finds matches
    positions = torch.arange(24).expand_as(ids)
    decoder.train().token_losses(ids, positions, ids.roll(-1, 1)).loss.backward()
    for name, weight in decoder.model.layers[0].ngram_heads.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_a_decoder_with_heads_is_saved_and_loaded(decoder, tmp_path):
    decoder.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(text()).logits, decoder(text()).logits)


def test_embeddings_in_the_place_of_tokens_are_refused(decoder):
    with pytest.raises(PerplabError, match="compare token ids"):
        decoder(inputs_embeds=torch.randn(1, 4, 16))


def test_an_order_below_one_is_refused():
    with pytest.raises(PerplabError, match="order 0"):
        NGramHead(8, 0)


def prompt():
    return torch.randint(1, 4, (2, 20), generator=torch.Generator().manual_seed(5))


def with_loud_heads(model):
    heads = [module for module in model.modules() if isinstance(module, NGramHeads)]
    assert heads
    for module in heads:
        loud(module)
    return model


@torch.no_grad()
def test_heads_that_were_put_in_change_no_logit_and_the_loss_reaches_them(family, tiny_model):
    model, ids = tiny_model(family), prompt()
    before = model(ids).logits
    after = insert_ngram_heads(model, [1, 2], 0)
    own = isinstance(after, DecoderForCausalLM)
    logits = after(ids).logits
    assert torch.allclose(logits, before, atol=1e-4) if own else torch.equal(logits, before)
    with torch.enable_grad():
        after(ids, labels=ids).loss.backward()
    heads = next(module for module in after.modules() if isinstance(module, NGramHeads))
    assert all(head.follower_proj.weight.grad.abs().sum() > 0 for head in heads.heads)


@torch.no_grad()
def test_a_family_with_heads_generates_with_its_cache_as_without(family, tiny_model):
    model = with_loud_heads(insert_ngram_heads(tiny_model(family), [1, 2], 0))
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(prompt(), **options)
    assert torch.equal(cached, model.generate(prompt(), use_cache=False, **options))
    longer = model(cached).logits
    pieces = model(cached[:, :20], use_cache=True)
    rest = model(cached[:, 20:], past_key_values=pieces.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat((pieces.logits, rest.logits), 1), longer, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "llama"])
@torch.no_grad()
def test_beams_and_left_padding_reach_the_heads(family, tiny_model):
    model = with_loud_heads(insert_ngram_heads(tiny_model(family), [1, 2], 1))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": 3}
    alone = model.generate(prompt(), **options)
    assert torch.equal(alone, model.generate(prompt(), use_cache=False, **options))
    padded = torch.nn.functional.pad(prompt(), (3, 0), value=1)
    mask = torch.nn.functional.pad(torch.ones_like(prompt()), (3, 0))
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 23:], alone[:, 20:])


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3", "perplab_decoder"])
@torch.no_grad()
def test_a_model_with_heads_is_saved_and_loaded(family, tiny_model, tiny_tokenizer, tmp_path):
    subject = insert_ngram_heads(LanguageModel(tiny_model(family), tiny_tokenizer), [1, 3], 1)
    with_loud_heads(subject.model)
    logits = subject.model(prompt()).logits
    subject.save(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(prompt()).logits, logits)
    loaded = load(tmp_path / "saved")
    assert torch.equal(loaded.model(prompt()).logits, logits)
    assert loaded.lineage.config == {"orders": [1, 3], "after_layer": 1, "separator": None}


def test_a_plain_llama_becomes_a_decoder_and_other_families_are_read_from_outside(tiny_model):
    assert isinstance(insert_ngram_heads(tiny_model("llama"), [1], 0), DecoderForCausalLM)
    assert isinstance(insert_ngram_heads(tiny_model("gpt2"), [1], 0), NGramForCausalLM)


def test_a_separator_hides_the_string_before_it(tiny_model):
    separator = 9
    model = with_loud_heads(insert_ngram_heads(tiny_model("gpt2"), [2, 3], 0, separator=separator))
    ids = torch.tensor([[1, 2, 9, 4, 5, 1, 9, 4, 6]])
    heads, states = model.heads["0"], torch.randn(1, 9, 32)
    hidden = heads(states, packed(ids))
    current = heads.norms[0](states)
    followers = torch.zeros_like(states)
    followers[0, 7] = current[0, 4]  # only "9 4" has been seen; "1 9" and "2 9" reach back
    stream = states + heads.heads[0](current, followers)
    assert torch.allclose(hidden, stream + heads.heads[1](heads.norms[1](stream), torch.zeros_like(states)), atol=1e-5)


@pytest.mark.parametrize(
    ("orders", "after_layer", "message"),
    [([1], 2, "no layer 2"), ([1], -1, "no layer -1"), ([], 0, "each 1 or more"), ([2, 0], 0, "each 1 or more")],
)
def test_impossible_insertions_are_refused(orders, after_layer, message, tiny_model):
    for family in ("gpt2", "llama"):
        with pytest.raises(PerplabError, match=message):
            insert_ngram_heads(tiny_model(family), orders, after_layer)


@torch.no_grad()
def test_hidden_states_are_those_after_the_heads(tiny_model):
    model, entered = with_loud_heads(insert_ngram_heads(tiny_model("gpt2"), [1], 0)), []
    model.base.transformer.h[1].register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
    for _ in range(2):  # transformers records them by hooks that it leaves behind
        states = model(prompt(), output_hidden_states=True).hidden_states
        assert torch.equal(states[1], entered[-1])


def test_a_layer_takes_heads_once(decoder):
    with pytest.raises(PerplabError, match="has n-gram heads already"):
        insert_ngram_heads(decoder, [1], 0)


def test_a_cache_filled_without_heads_is_refused(tiny_model):
    model = tiny_model("gpt2")
    cache = model(prompt(), use_cache=True).past_key_values
    with pytest.raises(PerplabError, match="without n-gram heads"):
        insert_ngram_heads(model, [1], 0)(prompt(), past_key_values=cache)
    with pytest.raises(PerplabError, match="compare token ids"):
        insert_ngram_heads(model, [1], 0)(inputs_embeds=torch.randn(1, 3, 32))


def test_ignored_labels_cost_nothing(tiny_model):
    model = insert_ngram_heads(tiny_model("gpt2"), [1], 0)
    labels = prompt()
    labels[:, :10] = IGNORED_LABEL
    assert torch.allclose(model(prompt(), labels=labels).loss, model.base(prompt(), labels=labels).loss)
