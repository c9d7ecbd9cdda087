"""Attribute paths of the families of causal language models: the table behind `anatomy`.

- A family is one row; a family with variants has one row a variant, told apart by values of its config. The first row
  whose values hold is taken.
- A row says only what differs from a row it resembles.
- What roles mean is told once, in `perplab.models.anatomy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedConfig

from perplab.errors import PerplabError

Residual = Literal["sequential", "parallel"]
FusedOrder = Literal["concatenated", "grouped"]


@dataclass(frozen=True)
class Family:
    """Attribute paths of one family, from the model or, for what a block holds, from the block.

    Args:
        when: the config values that tell this variant from the others of its family.
        qkv_order: of the rows of a fused qkv. `concatenated`: all queries, all keys, all values. `grouped`: for each
            key-value head its queries, its key, its value.
        logit_scale: the config's name for it.
        logit_soft_cap: the config's name for it.
        norm_offset: what a norm adds to its weight before it multiplies.
    """

    blocks: str
    token_embedding: str
    final_norm: str
    attention: str
    mlp: str | None
    norms: Mapping[str, str]
    projections: Mapping[str, str]
    head: str = "lm_head"
    residual: Residual = "sequential"
    position_embedding: str | None = None
    embedding_projection: str | None = None
    embedding_norm: str | None = None
    output_projection: str | None = None
    qkv_order: FusedOrder = "concatenated"
    logit_scale: str | None = None
    logit_soft_cap: str | None = None
    norm_offset: float = 0.0
    when: Mapping[str, object] = field(default_factory=dict)


_LLAMA = Family(
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    final_norm="model.norm",
    attention="self_attn",
    mlp="mlp",
    norms={"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"},
    projections={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_output": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)
_GPT2 = Family(
    blocks="transformer.h",
    token_embedding="transformer.wte",
    position_embedding="transformer.wpe",
    final_norm="transformer.ln_f",
    attention="attn",
    mlp="mlp",
    norms={"attention_input": "ln_1", "mlp_input": "ln_2"},
    projections={
        "qkv": "attn.c_attn",
        "attention_output": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
)
_OPT = Family(
    blocks="model.decoder.layers",
    token_embedding="model.decoder.embed_tokens",
    position_embedding="model.decoder.embed_positions",
    embedding_projection="model.decoder.project_in",
    final_norm="model.decoder.final_layer_norm",
    output_projection="model.decoder.project_out",
    attention="self_attn",
    mlp=None,
    norms={"attention_input": "self_attn_layer_norm", "mlp_input": "final_layer_norm"},
    projections={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_output": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
    },
    when={"do_layer_norm_before": True},
)
_GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    token_embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    mlp="mlp",
    norms={"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"},
    projections={
        "qkv": "attention.query_key_value",
        "attention_output": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    qkv_order="grouped",
    residual="parallel",
    when={"use_parallel_residual": True},
)
_BLOOM = Family(
    blocks="transformer.h",
    token_embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    final_norm="transformer.ln_f",
    attention="self_attention",
    mlp="mlp",
    norms={"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"},
    projections={
        "qkv": "self_attention.query_key_value",
        "attention_output": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    qkv_order="grouped",
    when={"apply_residual_connection_post_layernorm": False},
)
_SHARED_NORM = {"attention_input": "input_layernorm", "mlp_input": "input_layernorm"}
_FALCON = replace(_BLOOM, embedding_norm=None, residual="parallel", norms=_SHARED_NORM, when={"parallel_attn": True})
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "perplab_decoder"), (_LLAMA,)),
    "gemma2": (
        replace(
            _LLAMA,
            norms={
                "attention_input": "input_layernorm",
                "attention_output": "post_attention_layernorm",
                "mlp_input": "pre_feedforward_layernorm",
                "mlp_output": "post_feedforward_layernorm",
            },
            logit_soft_cap="final_logit_softcapping",
            norm_offset=1.0,
        ),
    ),
    "olmo2": (
        replace(
            _LLAMA,
            norms={"attention_output": "post_attention_layernorm", "mlp_output": "post_feedforward_layernorm"},
        ),
    ),
    "cohere": (replace(_LLAMA, norms=_SHARED_NORM, residual="parallel", logit_scale="logit_scale"),),
    "mixtral": (
        replace(
            _LLAMA,
            projections={
                **{role: _LLAMA.projections[role] for role in ("query", "key", "value", "attention_output")},
                "router": "mlp.gate",
                "gate_up": "mlp.experts.gate_up_proj",
                "down": "mlp.experts.down_proj",
            },
        ),
    ),
    "phi": (
        replace(
            _LLAMA,
            final_norm="model.final_layernorm",
            norms=_SHARED_NORM,
            projections={
                **{role: _LLAMA.projections[role] for role in ("query", "key", "value")},
                "attention_output": "self_attn.dense",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
            },
            residual="parallel",
        ),
    ),
    "gpt2": (_GPT2,),
    "opt": (
        _OPT,
        replace(
            _OPT,
            norms={"after_attention": "self_attn_layer_norm", "after_mlp": "final_layer_norm"},
            when={"do_layer_norm_before": False},
        ),
    ),
    "gpt_neox": (_GPT_NEOX, replace(_GPT_NEOX, residual="sequential", when={"use_parallel_residual": False})),
    "bloom": (_BLOOM,),
    "falcon": (
        replace(
            _FALCON,
            norms={"attention_input": "ln_attn", "mlp_input": "ln_mlp"},
            when={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
        ),
        replace(_FALCON, when={"new_decoder_architecture": True}),
        replace(_FALCON, qkv_order="concatenated", when={"multi_query": True, "parallel_attn": True}),
        _FALCON,
        replace(_FALCON, norms=_BLOOM.norms, residual="sequential", when={"parallel_attn": False}),
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The row for a model with this config.

    Raises:
        PerplabError: there is none.
    """
    variants = FAMILIES.get(config.model_type)
    if variants is None:
        raise PerplabError(
            f"where the parts of a {config.model_type!r} model are is not known", f"use one of {', '.join(FAMILIES)}"
        )
    for family in variants:
        if all(getattr(config, name) == value for name, value in family.when.items()):
            return family
    settings = {name: getattr(config, name) for family in variants for name in family.when}
    raise PerplabError(f"a {config.model_type} model with {settings} is a variant not known", "use another variant")
