"""A Llama-layout model as a GGUF file, which llama.cpp reads.

- Numbers are written in float32, so that what the two sides compute differs by rounding alone.
- llama.cpp rotates neighbouring pairs of a head where transformers rotates halves: rows of the query and key
  projections are put in that order.
- llama.cpp knows pre-tokenizers by name only. It gets the vocabulary and the merges of a byte-level tokenizer under the
  name given; the ids are the same in any case, but it cuts text as the tokenizer does only where the two cut alike. The
  tokenizer that perplab trains cuts like `qwen2`, but for contractions ('s, 't) and combining marks.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from perplab.models import LanguageModel
from perplab.text import text_encoder

_OF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_OF_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def export_gguf(
    language_model: LanguageModel, path: Path, pre_tokenizer: str = "qwen2", *, bfloat16: bool = False
) -> None:
    """Write the model and its byte-level BPE tokenizer to `path`; with `bfloat16`, its matrices in that type.

    Raises:
        ValueError: the model is not Llama's layout.
    """
    config = language_model.model.config
    if config.model_type != "llama":
        raise ValueError(f"{config.model_type} is not Llama's layout")
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, config)
    _add_tokenizer(writer, language_model.tokenizer, pre_tokenizer)
    for name, weight in language_model.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values, kind = _gguf_order(name, weight, config), gguf.GGMLQuantizationType.F32
        if bfloat16 and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.BF16
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(_gguf_name(name), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, pre_tokenizer: str) -> None:
    encoder = text_encoder(tokenizer)
    description = json.loads(encoder.to_str())
    special = {token["id"] for token in description["added_tokens"] if token["special"]}
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    kinds = [gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in range(len(tokens))]
    begins = encoder.encode("", add_special_tokens=True).ids[:1] == [tokenizer.bos_token_id]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in description["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)


def _gguf_name(name: str) -> str:
    if name in _OF_MODEL:
        return _OF_MODEL[name]
    _, _, layer, part = name.split(".", maxsplit=3)
    return f"blk.{layer}.{_OF_LAYER[part]}"


def _gguf_order(name: str, weight: Tensor, config: PreTrainedConfig) -> npt.NDArray[np.float32]:
    values = weight.float().numpy()
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        halves = values.reshape(-1, 2, config.head_dim // 2, values.shape[1])
        values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values
