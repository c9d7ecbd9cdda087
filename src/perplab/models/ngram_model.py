"""Any causal LM with n-gram heads after some of its blocks.

- It keeps the contract of causal LMs. The base model is untouched inside it; the heads work on what a block hands on,
  and the token ids, which transformers does not pass down, reach them beside the forward pass.
- The cache is the base's own, with a state for the heads of each block behind its layers.
- The folder of such a model holds the heads, and in `base/` the whole base model.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from perplab.errors import PerplabError
from perplab.models.families import family_of
from perplab.models.lineage import weights_fingerprint
from perplab.models.mixer_cache import MixerState
from perplab.models.mixers.context import SequenceContext
from perplab.models.ngram_heads import NGramHeads

BASE_FOLDER = "base"
_FILE_NAME = "model.safetensors"


class NGramConfig(PreTrainedConfig):
    """Where the heads are, and what of the base others ask a config for."""

    model_type = "perplab_ngram"

    ngram_heads: list[list[int]] = field(default_factory=list)  # orders of the heads after each block
    ngram_separator: int | None = None  # the token id that n-grams do not reach back over
    rms_norm_eps: float = 1e-5  # of the norms in front of the heads
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def for_base(cls, base: PreTrainedModel, ngram_heads: list[list[int]], separator: int | None) -> "NGramConfig":
        """The config of `base` with heads."""
        copied = ("max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
        return cls(
            ngram_heads=ngram_heads,
            ngram_separator=separator,
            **{name: getattr(base.config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
            **{name: getattr(base.config, name, None) for name in copied},
        )


class NGramCache(DynamicCache):
    """A cache for a base model, and behind its layers a state for the heads of each block."""

    def __init__(self, base_config: PreTrainedConfig) -> None:
        super().__init__(config=base_config)
        self.extra_layers = [MixerState() for _ in range(base_config.num_hidden_layers)]
        self.layers.extend(self.extra_layers)


class NGramForCausalLM(PreTrainedModel, GenerationMixin):
    """A base model and n-gram heads, which add nothing until they are trained or loaded.

    Args:
        config: where the heads are.
        base: the model; it is used as it is and not copied.

    Raises:
        PerplabError: where the blocks of the base's family are is not known.
    """

    config_class = NGramConfig
    config: NGramConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"

    def __init__(self, config: NGramConfig, base: PreTrainedModel) -> None:
        super().__init__(config)
        self.base = base
        self.heads = nn.ModuleDict()
        for index, orders in enumerate(config.ngram_heads):
            if orders:
                heads = NGramHeads(config, index)
                heads.set_to_zero()
                self.heads[str(index)] = heads
        self.heads.to(base.device, base.dtype)
        self.generation_config = deepcopy(base.generation_config)
        self._blocks = f"{family_of(base.config).blocks}."

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Not: `forward` makes the cache that has room for the heads."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.base.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The base's token embeddings."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The base's head."""
        return self.base.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> Any:
        """The causal-LM contract.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, text already read + length), 0 for padding.
            position_ids: (batch, length). Without cache and padding, a 0 opens a new document for the heads.
            past_key_values: what this model returned for the text already read; anything empty begins a text.
            inputs_embeds: refused, as the heads compare token ids.
            labels: (batch, length), aligned with `input_ids` and shifted by the base; -100 is not scored.
            use_cache: return a cache; by default only outside training and without labels.
            options: of the base's forward.

        Raises:
            PerplabError: there are no token ids, or the cache was filled by a model without heads.
        """
        if input_ids is None:
            raise PerplabError("n-gram heads compare token ids, and the model was given none", "give input_ids")
        use_cache = (self.config.use_cache and not self.training and labels is None) if use_cache is None else use_cache
        cache = self._begun(past_key_values) if use_cache or past_key_values is not None else None
        if position_ids is not None and "position_ids" in signature(self.base.forward).parameters:
            options["position_ids"] = position_ids
        with self._heads_reading(_context(input_ids, attention_mask, position_ids, cache)):
            return self.base(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                labels=labels,
                use_cache=use_cache,
                **options,
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write config and heads into `save_directory`, and the base model into its folder `base`."""
        folder = Path(save_directory)
        self.base.save_pretrained(folder / BASE_FOLDER)
        heads = {name: weight.detach().cpu().contiguous() for name, weight in self.heads.state_dict().items()}
        save_file(heads, folder / _FILE_NAME, {"base_fingerprint": weights_fingerprint(folder / BASE_FOLDER)})
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *_: Any,
        config: NGramConfig | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        output_loading_info: bool = False,
        **__: Any,
    ) -> Any:
        """The model in a folder."""
        folder = Path(pretrained_model_name_or_path)
        base = AutoModelForCausalLM.from_pretrained(
            folder / BASE_FOLDER,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        model = cls(config or NGramConfig.from_pretrained(folder), base).eval()
        missing, unexpected = model.heads.load_state_dict(load_file(folder / _FILE_NAME), strict=False)
        report = {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": []}
        return (model, report) if output_loading_info else model

    def _begun(self, past_key_values: Any) -> NGramCache:
        if isinstance(past_key_values, NGramCache):
            return past_key_values
        if past_key_values is not None and past_key_values.get_seq_length():
            raise PerplabError("the cache was filled by a model without n-gram heads", "begin with an empty cache")
        return NGramCache(self.base.config)

    @contextmanager
    def _heads_reading(self, context: SequenceContext) -> Iterator[None]:
        """Let the heads work on what the blocks hand on, before the hooks that record hidden states."""
        handles = [
            self.base.get_submodule(self._blocks + index).register_forward_hook(
                partial(_after_block, heads, context), prepend=True
            )
            for index, heads in self.heads.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _after_block(heads: nn.Module, context: SequenceContext, _: nn.Module, __: Any, output: Any) -> Any:
    """What a block hands on, with what the heads add."""
    if isinstance(output, tuple):
        return heads(output[0], context), *output[1:]
    return heads(output, context)


def _context(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: NGramCache | None
) -> SequenceContext:
    length, past = input_ids.shape[1], 0 if cache is None else cache.get_seq_length()
    if position_ids is None:
        position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
    padded = attention_mask is not None and not bool(attention_mask.all())
    return SequenceContext(
        position_ids=position_ids.expand(len(input_ids), -1),
        rotary=None,
        packed=not padded and past == 0,
        attention_mask=None,
        real=attention_mask[:, -length:].bool() if attention_mask is not None and padded else None,
        cache=cache,
        input_ids=input_ids,
    )


AutoConfig.register(NGramConfig.model_type, NGramConfig)
AutoModelForCausalLM.register(NGramConfig, NGramForCausalLM)
