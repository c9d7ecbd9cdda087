"""Small random models of every family, and a tokenizer they share.

Heavy libraries are imported by the fixtures that need them, so that tests of light modules stay light.
"""

import copy
import functools
import os
import string

import pytest
from hypothesis import settings

# A shared machine is slow at times: examples have no deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch and numpy, here and in processes started from here

VOCABULARY = 101
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MLP = {"intermediate_size": 48}
GROUPED_QUERY = {**SIZES, **MLP, "num_key_value_heads": 2}
LLAMA_LIKE = {**GROUPED_QUERY, "head_dim": 8}
FAMILIES = {
    "gpt2": SIZES,
    "opt": {**SIZES, "ffn_dim": 48},
    "opt-post-norm": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "opt-projected": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt_neox": {**SIZES, **MLP},
    "gpt_neox-sequential": {**SIZES, **MLP, "use_parallel_residual": False},
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma2": {**LLAMA_LIKE, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5},
    "phi": GROUPED_QUERY,
    "falcon": {**SIZES, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "falcon-many-keys": {**SIZES, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": True},
    "falcon-sequential": {**SIZES, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    "falcon-new": {**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon-new-one-norm": {
        **SIZES,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
    },
    "bloom": SIZES,
    "olmo2": GROUPED_QUERY,
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
    "cohere": {**GROUPED_QUERY, "logit_scale": 0.25},
    "perplab_decoder": {**GROUPED_QUERY, "head_dim": 8},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """A test that asks for this runs once for every family and variant."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model():
    """`tiny_model(family)` is a new copy of a two-layer model with random weights, biases and norms."""
    return lambda family: copy.deepcopy(_tiny_model(family))


@functools.cache
def _tiny_model(family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import perplab.models.decoder  # noqa: F401 (registers perplab_decoder)

    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(family.partition("-")[0], **FAMILIES[family], **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():  # fresh biases are 0 and fresh norms are 1: a part left out would not show
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tiny_tokenizer():
    """One token a printable ASCII character, within the vocabulary of every tiny model."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<eos>", "<unk>", *string.digits, *string.ascii_letters, *string.punctuation, " ", "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
