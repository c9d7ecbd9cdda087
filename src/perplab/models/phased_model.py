"""A rotary model of `transformers` whose attention adapts phases, in a form that can be saved and loaded.

The model itself is inside, untouched but for the phases; calls and generation are its own.
"""

from dataclasses import asdict, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from perplab.models.mixers.complex import ComplexOptions
from perplab.models.projected_phase import attach_phases


class PhasedConfig(PreTrainedConfig):
    """The config of the model inside, the options of its phases, and what others ask a config for."""

    model_type = "perplab_phased"

    base: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def around(cls, base: PreTrainedConfig, options: ComplexOptions) -> "PhasedConfig":
        """The config for a model of config `base` with phases of these options."""
        return cls(
            base=base.to_dict(), options=asdict(options), **{name: getattr(base, name, None) for name in _ASKED_FOR}
        )


_ASKED_FOR = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "max_position_embeddings",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


class PhasedForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal LM with phases."""

    config_class = PhasedConfig
    config: PhasedConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"phase"}  # noqa: RUF012

    def __init__(self, config: PhasedConfig) -> None:
        chosen = config._attn_implementation  # None leaves the choice to the model inside
        super().__init__(config)
        base = AutoConfig.for_model(**config.base)
        dtype = torch.get_default_dtype()  # what is being loaded, not what the config of the model inside remembers
        self.base: Any = AutoModelForCausalLM.from_config(base, attn_implementation=chosen, dtype=dtype)
        attach_phases(self.base, ComplexOptions(**config.options))
        self.post_init()

    @classmethod
    def around(cls, base: PreTrainedModel, options: ComplexOptions) -> "PhasedForCausalLM":
        """A model around `base`, whose attention gets phases in place.

        Raises:
            PerplabError: its family is not known to turn queries and keys as the phases do.
        """
        attach_phases(base, options)
        with torch.device("meta"):
            model = cls(PhasedConfig.around(base.config, options))
        model.base = base
        model.generation_config = base.generation_config
        return model.train(base.training)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
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
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> ModelOutput:
        """The causal-LM contract; arguments as for the model inside."""
        return self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **options,
        )

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """As the model inside, which makes the cache that it needs."""
        options.setdefault("generation_config", self.generation_config)
        return self.base.generate(inputs, **options)


AutoConfig.register(PhasedConfig.model_type, PhasedConfig)
AutoModelForCausalLM.register(PhasedConfig, PhasedForCausalLM)
