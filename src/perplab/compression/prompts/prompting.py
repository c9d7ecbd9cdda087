"""Repairing a compressed model without touching its weights: the verb `prompt`.

- Soft prompts are trained in front of the frozen model, on the training side of a corpus. Several of them, on several
  kinds of text, make a pool from which each text gets one.
- Every prompt, and every adapter it is compared with, takes the same number of steps on the same amount of text.
- What comes out is a causal LM that every other verb takes, with the model that went in whole inside it; for `lora` it
  is the model with changed weights.
"""

import json
import os
from dataclasses import asdict
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from perplab.compression.prompts.adapters import train_lora, train_prefix, train_ptuning
from perplab.compression.prompts.attention_to_latents import check_attention_is_seen
from perplab.compression.prompts.config import PromptConfig
from perplab.compression.prompts.fitting import Fitting, Watch
from perplab.compression.prompts.pool import SoftPromptPool
from perplab.compression.prompts.prompted_config import PromptedConfig
from perplab.compression.prompts.prompted_model import DynamicPrompting
from perplab.compression.prompts.rows import Rows
from perplab.compression.prompts.selectors import SELECTORS
from perplab.compression.prompts.soft_prompts import attention_statistics, train_prompt
from perplab.compression.prompts.unfinished import Unfinished
from perplab.models import LanguageModel, load
from perplab.models.latent_tokens import LatentCache
from perplab.text import Corpus, open_corpus, token_store


class PlannedPrompt(NamedTuple):
    """A prompt that is to be trained."""

    name: str
    length: int
    domain: str | None
    """The only kind of text it is trained on; None for all."""


def prompt(
    language_model: LanguageModel,
    corpus: Corpus | str,
    config: PromptConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
) -> LanguageModel:
    """Train what repairs a model, and put it in front of the model.

    Args:
        language_model: the model, put into evaluation mode and otherwise left as it is.
        corpus: text; only its training side is read.
        config: the settings.
        out: folder for the finished model; an interrupted run continues with the same call.
        watch: called after each step with what is trained, the steps done and their number.

    Returns:
        The repaired model.

    Raises:
        PerplabError: the text is too short, the selector is unknown or cannot read this family, the model has no room
            for the prompts, `out` was made by something else, or a loss is not finite.
        KeyboardInterrupt: somebody pressed Ctrl-C; the training so far lies beside `out`.
    """
    config = config or PromptConfig()
    corpus = (open_corpus(corpus) if isinstance(corpus, str) else corpus).in_split("train")
    record = json.loads(json.dumps(asdict(config)))
    record |= {"corpus": corpus.spec, "text": corpus.fingerprint, "base": language_model.fingerprint}
    unfinished = Unfinished.of(out, {key: value for key, value in record.items() if key != "checkpoint_every"})
    if unfinished and unfinished.finished:
        return load(unfinished.out)
    language_model.model.eval()
    rows = Rows.of(token_store(corpus, language_model.tokenizer, progress=False), config.row_tokens)
    training = _Training(language_model, rows, config, unfinished, watch)
    repaired = training.lora() if config.method == "lora" else training.prompted()
    made = language_model.derive(repaired, "prompt", config=record, seed=config.seed, figures=training.figures)
    if unfinished:
        made.save(unfinished.out)
        unfinished.remove()
    return made


def planned_prompts(config: PromptConfig, domains: tuple[str, ...]) -> list[PlannedPrompt]:
    """The prompts of a pool, in its order; their names tell what they are trained on."""
    if config.method != "dynamic":
        return [PlannedPrompt(config.method, config.length[0], None)]
    kinds: tuple[str | None, ...] = domains if config.slices == "domain" and len(domains) > 1 else (None,)
    repeated = config.prompts > len(kinds)
    return [
        PlannedPrompt(
            (kinds[index % len(kinds)] or "mixed") + (f"-{index // len(kinds) + 1}" if repeated else ""),
            config.length[index % len(config.length)],
            kinds[index % len(kinds)],
        )
        for index in range(config.prompts)
    ]


class _Training:
    """What a run trains, and the figures of it."""

    def __init__(
        self,
        base: LanguageModel,
        rows: Rows,
        config: PromptConfig,
        unfinished: Unfinished | None,
        watch: Watch | None,
    ) -> None:
        self.base, self.rows, self.config = base, rows, config
        self._unfinished, self._watch = unfinished, watch
        self.figures: dict[str, float] = {}

    def lora(self) -> PreTrainedModel:
        """The model with low-rank changes."""
        changed, numbers, losses = train_lora(self.base.model, self._fitting("lora", 0, self.rows), self.config.rank)
        self._record("lora", numbers, losses)
        return changed

    def prompted(self) -> DynamicPrompting:
        """The model behind its prompts."""
        config, model = self.config, self.base.model
        planned = planned_prompts(config, self.rows.domains)
        settings = PromptedConfig.for_base(
            model,
            {one.name: one.length for one in planned},
            selector=config.selector if config.method == "dynamic" else planned[0].name,
            layer=config.layer,
            context_tokens=config.context_tokens,
            seed=config.seed,
        )
        if settings.selector not in (*SELECTORS, *settings.prompt_names):
            settings.selector_function()  # says what there is to choose from
        if settings.selector in ("attention", "attention_calibrated"):
            check_attention_is_seen(model, config.layer)
        pool = SoftPromptPool({one.name: self._trained(number, one) for number, one in enumerate(planned)})
        if settings.selector == "attention_calibrated":
            settings.attention_mean, settings.attention_deviation = attention_statistics(
                model,
                LatentCache.of(model, list(pool.prompts.values())),
                self.rows,
                context_tokens=config.context_tokens,
                layer=config.layer,
                seed=config.seed,
            )
        return DynamicPrompting(settings, self.base, pool).eval()

    def _trained(self, number: int, planned: PlannedPrompt) -> Tensor:
        rows = self.rows if planned.domain is None else self.rows.of_domain(planned.domain)
        fitting = self._fitting(planned.name, number, rows)
        if self.config.method == "prefix":
            vectors, numbers, losses = train_prefix(self.base.model, fitting, planned.length)
        elif self.config.method == "ptuning":
            vectors, numbers, losses = train_ptuning(self.base.model, fitting, planned.length)
        else:
            vectors, losses = train_prompt(self.base.model, fitting, planned.length)
            numbers = vectors.numel()
        self._record(planned.name, numbers, losses)
        return vectors

    def _fitting(self, name: str, number: int, rows: Rows) -> Fitting:
        config = self.config
        return Fitting(
            name=name,
            rows=rows,
            seed=(config.seed, number),
            steps=config.steps,
            batch_rows=config.batch_rows,
            learning_rate=config.peak_learning_rate,
            checkpoint=self._unfinished.checkpoint(f"{number}") if self._unfinished else None,
            checkpoint_every=config.checkpoint_every,
            watch=self._watch,
        )

    def _record(self, name: str, numbers: int, losses: Tensor) -> None:
        config = self.config
        last = losses[-max(1, len(losses) // 10) :]
        self.figures["trained_parameters"] = self.figures.get("trained_parameters", 0) + numbers
        self.figures["tokens"] = self.figures.get("tokens", 0) + config.steps * config.batch_rows * config.row_tokens
        self.figures[f"loss_first/{name}"] = float(losses[0])
        self.figures[f"loss_last/{name}"] = float(last.mean())
