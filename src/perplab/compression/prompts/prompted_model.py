"""A causal LM that reads every text after the prompt that suits it.

- It keeps the contract of causal LMs, so whatever takes a model takes this one. Its base is untouched inside it.
- A plain forward pass is causal: until `context_tokens` tokens of a row are read, the pool's first prompt serves, and
  from then on the prompt chosen by them. No token is predicted after a prompt that was chosen by looking at it, so
  scores of whole texts are honest, and one token more or less to the right changes nothing.
- Generation chooses once, on the whole context. Whoever scores a continuation after a context does the same: `choose`
  on the context, then pass `choice` with context and continuation.
- A batch may mix prompts. They are in the cache, so what follows the context costs what it costs after one prompt.
- The folder of such a model holds the prompts, and in `base/` the whole base model as its own verb wrote it.
"""

import os
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from perplab.compression.prompts.pool import SoftPromptPool
from perplab.compression.prompts.prompted_config import PromptedConfig
from perplab.compression.prompts.selectors import Selector
from perplab.errors import PerplabError
from perplab.models import LanguageModel, load
from perplab.models.latent_tokens import LatentCache, read_after

BASE_FOLDER = "base"


@dataclass
class PromptedOutput(CausalLMOutputWithPast):
    """A causal LM's output, and which prompt each row was read after, (batch,)."""

    choice: Tensor | None = None


class DynamicPrompting(PreTrainedModel, GenerationMixin):
    """A base model, a pool of prompts, and a selector.

    Args:
        config: how to choose.
        base: the model, with its tokenizer and lineage; it is used as it is and not copied.
        pool: the prompts, those that the config names.

    Raises:
        PerplabError: the selector is unknown, or the prompts do not fit the model.
    """

    config_class = PromptedConfig
    config: PromptedConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"

    def __init__(self, config: PromptedConfig, base: LanguageModel, pool: SoftPromptPool) -> None:
        super().__init__(config)
        self.base_language_model = base
        self.base = base.model
        prompts = pool.only(config.prompt_names).prompts.values()
        self.prompts = nn.ParameterList(nn.Parameter(vectors, requires_grad=False) for vectors in prompts)
        self.selector: Selector = config.selector_function()
        self.generation_config = deepcopy(base.model.generation_config)
        self._latents: LatentCache | None = None
        self.latents  # noqa: B018 - refuses prompts that do not fit

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return self.base.dtype

    def choosing(self, **choices: Any) -> "DynamicPrompting":
        """The same base and prompts, with other values of the config's fields that say how to choose."""
        config = PromptedConfig.from_dict(self.config.to_dict() | choices)
        return DynamicPrompting(config, self.base_language_model, self.pool).eval()

    @property
    def pool(self) -> SoftPromptPool:
        """The prompts by name."""
        return SoftPromptPool(dict(zip(self.config.prompt_names, self.prompts, strict=True)))

    @property
    def latents(self) -> LatentCache:
        """Keys and values of every prompt, a row each."""
        if self._latents is None:
            with torch.inference_mode(False), torch.no_grad():
                self._latents = LatentCache.of(self.base, list(self.prompts))
        return self._latents

    def get_input_embeddings(self) -> nn.Module:
        """The base's token embeddings."""
        return self.base.get_input_embeddings()

    def prompt_scores(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the selector thinks of each prompt.

        Args:
            input_ids: (batch, length), the context.
            attention_mask: (batch, length), 0 for padding.

        Returns:
            (batch, prompts), higher is better.

        Raises:
            PerplabError: a context is empty, or too short for the selector.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not input_ids.numel() or not bool(mask.any(-1).all()):
            raise PerplabError("a context without a token", "give at least one token to choose by")
        with torch.no_grad():
            return self.selector(self.base, self.latents, input_ids, mask)

    def choose(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The prompt for each context, (batch,) places in `config.prompt_names`; arguments as for `prompt_scores`."""
        return self.prompt_scores(input_ids, attention_mask).argmax(-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        choice: Tensor | None = None,
        **_: Any,
    ) -> PromptedOutput:
        """The causal-LM contract.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, text already read + length), 0 for padding.
            position_ids: (batch, length), counted from the first token of the text.
            past_key_values: what this model returned for the text already read; anything empty begins a text.
            labels: (batch, length), aligned with `input_ids` and shifted here; -100 is not scored.
            use_cache: return a cache; by default without labels.
            logits_to_keep: logits of the last so many positions, or of these indices; 0 for all.
            output_hidden_states: return the base's hidden states of the text.
            choice: (batch,) the prompt of each row; by default chosen causally, as the module says.

        Raises:
            PerplabError: `past_key_values` holds text that was read without a prompt.
        """
        options: dict[str, Any] = {"output_hidden_states": output_hidden_states, "use_cache": True}
        cache = self._begun(past_key_values, choice)
        if cache is None:
            choice, output = self._read_causally(input_ids, attention_mask, position_ids, options)
            output.logits = _kept(output.logits, logits_to_keep)
        else:
            options["logits_to_keep"] = logits_to_keep
            output = read_after(self.base, cache, input_ids, attention_mask, position_ids, **options)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=self.config.vocab_size)
        keeps_cache = labels is None if use_cache is None else use_cache
        return PromptedOutput(
            loss=loss,
            logits=output.logits,
            past_key_values=output.past_key_values if keeps_cache else None,
            hidden_states=output.hidden_states,
            choice=choice,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *, choice: Tensor | None = None, **options: Any) -> Any:
        """Continue each row after one prompt, by default chosen on the whole context.

        Args:
            inputs: (batch, length), the context; or `input_ids` among the options.
            choice: (batch,) the prompt of each row.
            options: of transformers' `generate`.
        """
        input_ids = options.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise PerplabError("nothing to continue", "give input_ids of at least one token a row")
        if choice is None:
            choice = self.choose(input_ids, options.get("attention_mask"))
        return super().generate(input_ids, choice=choice, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write config and prompts into `save_directory`, and the base model whole into its folder `base`."""
        folder = Path(save_directory)
        base = copy(self.base_language_model)  # saving tells a model where it lies, which the base need not know
        base.save(folder / BASE_FOLDER)
        self.pool.save(folder, base.fingerprint)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *_: Any,
        config: PromptedConfig | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        output_loading_info: bool = False,
        **__: Any,
    ) -> Any:
        """The model in a folder; its base is loaded as any model is."""
        folder = Path(pretrained_model_name_or_path)
        config = config or PromptedConfig.from_pretrained(folder)
        base = load(folder / BASE_FOLDER, dtype=dtype, attn_implementation=attn_implementation)
        model = cls(config, base, SoftPromptPool.read(folder, config.prompt_names)).eval()
        nothing_amiss: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        return (model, nothing_amiss) if output_loading_info else model

    def _begun(self, past_key_values: Any, choice: Tensor | None) -> LatentCache | None:
        """What was read so far, the chosen prompts at the least; None where nothing was read or chosen."""
        if isinstance(past_key_values, LatentCache):
            return past_key_values
        if past_key_values is not None and past_key_values.get_seq_length():
            raise PerplabError("the cache holds text that was read without a prompt", "begin with an empty cache")
        return None if choice is None else self.latents.rows(choice)

    def _read_causally(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """The choice by each row's first tokens, and the base's output with the first prompt's up to them."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        read = mask.long().cumsum(-1)
        needed = self.config.context_tokens
        choice = torch.zeros_like(read[:, -1])
        decided = read[:, -1] >= needed
        if decided.any():
            context = (mask * (read <= needed))[decided]
            columns = int((read[decided] < needed).sum(-1).max()) + 1
            choice[decided] = self.choose(input_ids[decided, :columns], context[:, :columns])
        output = read_after(self.base, self.latents.rows(choice), input_ids, mask, position_ids, **options)
        early = read < needed
        columns = int(early.sum(-1).max())
        if columns and choice.any():
            first = read_after(
                self.base,
                self.latents.rows(torch.zeros_like(choice)),
                input_ids[:, :columns],
                mask[:, :columns],
                None if position_ids is None else position_ids[:, :columns],
                **options,
            )
            output.logits = _spliced(first.logits, output.logits, early[:, :columns])
            if output.hidden_states is not None:
                output.hidden_states = tuple(
                    _spliced(before, after, early[:, :columns])
                    for before, after in zip(first.hidden_states, output.hidden_states, strict=True)
                )
        return choice, output

    def _apply(self, fn: Any, recurse: bool = True) -> "DynamicPrompting":
        self._latents = None  # of the weights' device and dtype
        return super()._apply(fn, recurse)


def _spliced(first: Tensor, chosen: Tensor, early: Tensor) -> Tensor:
    """(batch, length, width): `first`, (batch, columns, width), where `early` says so, else `chosen`."""
    columns = early.shape[1]
    return torch.cat((torch.where(early[..., None], first, chosen[:, :columns]), chosen[:, columns:]), dim=1)


def _kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, Tensor):
        return logits[:, logits_to_keep]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits


AutoConfig.register(PromptedConfig.model_type, PromptedConfig)
AutoModelForCausalLM.register(PromptedConfig, DynamicPrompting)
