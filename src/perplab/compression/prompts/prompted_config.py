"""The config of a model that reads after prompts: how it chooses, and what others ask a config for."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from perplab.compression.prompts.selectors import (
    SELECTORS,
    Selector,
    attention_scores,
    fixed_scores,
    likelihood_scores,
    random_scores,
)
from perplab.errors import PerplabError


class PromptedConfig(PreTrainedConfig):
    """How a prompted model chooses, and what of its base others ask a config for."""

    model_type = "perplab_prompted"

    prompt_names: list[str] = field(default_factory=list)
    selector: str = "attention"  # one of SELECTORS, or the name of a prompt
    layer: int = 0  # whose attention selects
    context_tokens: int = 16  # read before the choice, in a plain forward pass
    seed: int = 0  # of the random selector
    attention_mean: list[float] = field(default_factory=list)  # of each prompt, for the calibrated selector
    attention_deviation: list[float] = field(default_factory=list)
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int | None = None  # what the base has, less the longest prompt
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def for_base(cls, base: PreTrainedModel, lengths: Mapping[str, int], **choices: Any) -> "PromptedConfig":
        """The config of `base` read after prompts.

        Args:
            base: the model.
            lengths: of each prompt, by name.
            choices: the fields that say how to choose.

        Raises:
            PerplabError: a prompt is as long as the model's positions.
        """
        config = base.config
        positions, longest = getattr(config, "max_position_embeddings", None), max(lengths.values())
        if positions is not None and positions <= longest:
            raise PerplabError(
                f"a prompt of {longest} tokens leaves none of the model's {positions} positions",
                "use shorter prompts",
            )
        return cls(
            prompt_names=list(lengths),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            max_position_embeddings=None if positions is None else positions - longest,
            **{name: getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
            **choices,
        )

    def selector_function(self) -> Selector:
        """The selector that the config names.

        Raises:
            PerplabError: there is none of that name, and no such prompt.
        """
        if self.selector in self.prompt_names:
            return fixed_scores(self.prompt_names.index(self.selector))
        if self.selector == "attention":
            return attention_scores(self.layer)
        if self.selector == "attention_calibrated":
            if len(self.attention_mean) != len(self.prompt_names):
                raise PerplabError("the selector is not calibrated", "train the prompts with attention_calibrated")
            return attention_scores(self.layer, self.attention_mean, self.attention_deviation)
        if self.selector == "likelihood":
            return likelihood_scores
        if self.selector == "random":
            return random_scores(self.seed)
        raise PerplabError(
            f"unknown selector {self.selector!r}",
            f"choose {', '.join(SELECTORS)}, or a prompt: {', '.join(self.prompt_names)}",
        )
