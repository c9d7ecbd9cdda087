"""Continuing a prompt with any language model; a masked diffusion model draws its tokens in any order.

A causal model's prompt is preceded by the token that begins documents, as in training; sampling takes its seed as an
argument and leaves the global generator as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import TextStreamer

from perplab.errors import PerplabError
from perplab.models.any_order import is_any_order
from perplab.models.diffusion.infilling import DiffusionGenerateConfig, Filled, fill
from perplab.models.language_model import LanguageModel
from perplab.models.position_limit import position_limit
from perplab.text import boundary_tokens, text_encoder


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How to continue.

    Raises:
        PerplabError: a value that cannot be meant.
    """

    max_new_tokens: int = 128
    """Longest continuation, in tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token each time."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that hold this much probability."""
    seed: int = 0
    """Same seed, same continuation."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.max_new_tokens < 1:
            raise PerplabError(f"max_new_tokens is {self.max_new_tokens}", "give 1 or more")
        if self.temperature < 0:
            raise PerplabError(f"temperature is {self.temperature}", "give 0 or more")
        if not 0 < self.top_p <= 1:
            raise PerplabError(f"top_p is {self.top_p}", "give a probability above 0, at most 1")


class _PieceStreamer(TextStreamer):
    """Hand each finished piece of text to a function."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._show(text)


def generate(
    language_model: LanguageModel,
    prompt: str,
    config: GenerateConfig | None = None,
    *,
    show: Callable[[str], None] | None = None,
) -> str:
    """Continue `prompt`.

    Args:
        language_model: the model and its tokenizer.
        prompt: text; may be empty.
        config: how to sample.
        show: called with each piece of text as it comes.

    Returns:
        The continuation alone, up to the end of the document or `max_new_tokens`.

    Raises:
        PerplabError: prompt and continuation are longer than the model's positions.
    """
    config = config or GenerateConfig()
    if is_any_order(language_model.model):
        continuation = fill_blanks(language_model, prompt, config).fills[0]
        if show:
            show(continuation)
        return continuation
    model, tokenizer = language_model.model, language_model.tokenizer
    bos, eos = boundary_tokens(tokenizer)
    ids = [bos, *text_encoder(tokenizer).encode(prompt, add_special_tokens=False).ids]
    limit = position_limit(model.config)
    if limit is not None and len(ids) + config.max_new_tokens > limit:
        raise PerplabError(
            f"a prompt of {len(ids)} tokens and {config.max_new_tokens} more exceed the model's {limit} positions",
            "shorten the prompt, or ask for fewer tokens with --max-new-tokens",
        )
    input_ids = torch.tensor([ids], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(config.seed)
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=config.max_new_tokens,
            pad_token_id=eos,
            eos_token_id=eos,
            streamer=_PieceStreamer(tokenizer, show) if show else None,
            **sampling,
        )
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def fill_blanks(
    language_model: LanguageModel,
    prompt: str,
    config: GenerateConfig | None = None,
    diffusion: DiffusionGenerateConfig | None = None,
) -> Filled:
    """Continue `prompt`, or fill in its blanks, with a masked diffusion model.

    Args:
        language_model: the model and its tokenizer.
        prompt: text; may be empty.
        config: length of a blank, and how tokens are drawn.
        diffusion: where the blanks are, and how they are revealed.

    Raises:
        PerplabError: the model is a causal one, there is no blank to fill, or the text is longer than its positions.
    """
    config, diffusion = config or GenerateConfig(), diffusion or DiffusionGenerateConfig()
    if not is_any_order(language_model.model):
        raise PerplabError(
            f"{language_model.name} is a causal model, which cannot fill in blanks or generate in steps",
            "leave --steps, --method, --order, --top-k, --suffix and --infill to masked diffusion models",
        )
    sampling = diffusion.sampling(temperature=config.temperature, top_p=config.top_p)
    return fill(language_model, diffusion.pieces(prompt, config.max_new_tokens), sampling, seed=config.seed)
