"""Text with blanks, filled in by a masked model: a continuation, a middle, or blanks anywhere.

A prompt is pieces of text and lengths of blanks. Each blank is filled with exactly so many tokens; where the model ends
the document in it, the tokens after that are not shown.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from perplab.errors import PerplabError
from perplab.models.diffusion.reading import Reader
from perplab.models.diffusion.sampling import SamplingConfig, sample
from perplab.models.diffusion.unmasking import Method, Order, expected_nfe
from perplab.models.language_model import LanguageModel
from perplab.text import text_encoder

Piece = str | int
"""Text, or a blank of so many tokens."""

_BLANK = re.compile(r"(\[M\]|_{3,})")


@dataclass(frozen=True, kw_only=True)
class DiffusionGenerateConfig:
    """How a masked diffusion model generates, beside what holds for every model.

    Raises:
        PerplabError: a suffix to a text that has blanks of its own; and what `SamplingConfig` refuses.
    """

    steps: int = 128
    """Steps of a masked diffusion model (tweedie, euler); more steps, fewer tokens at once."""
    method: Method = "tweedie"
    """How it reveals tokens: several a step by chance (tweedie, euler), or one by one (first-hitting, ordered)."""
    order: Order = "random"
    """In which order `ordered` goes."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens (masked diffusion models); 0 for all."""
    suffix: str = ""
    """Text that follows what is generated (masked diffusion models)."""
    infill: bool = False
    """PROMPT has blanks: ___ for one of max_new_tokens, [M] for one of one token (masked diffusion models)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.suffix and self.infill:
            raise PerplabError("a suffix to a text with blanks", "write it into the text, or leave --infill out")
        self.sampling(temperature=1.0, top_p=1.0)

    def sampling(self, *, temperature: float, top_p: float) -> SamplingConfig:
        """The sampler's settings."""
        return SamplingConfig(
            steps=self.steps,
            method=self.method,
            order=self.order,
            top_k=self.top_k,
            temperature=temperature,
            top_p=top_p,
        )

    def pieces(self, prompt: str, length: int) -> list[Piece]:
        """A prompt as text and blanks, with `length` tokens to each blank that does not say.

        Raises:
            PerplabError: it is to have blanks and has none.
        """
        if self.infill:
            return blanks_in(prompt, length)
        return [piece for piece in (prompt, length, self.suffix) if piece]


@dataclass(frozen=True)
class Filled:
    """Text that was filled in.

    Attributes:
        text: the whole of it.
        fills: what each blank was filled with.
        tokens: how many were generated.
        evaluations: how often the network was asked.
        expected_evaluations: how often that is on average for these settings.
    """

    text: str
    fills: tuple[str, ...]
    tokens: int
    evaluations: int
    expected_evaluations: float


def blanks_in(text: str, length: int) -> list[Piece]:
    """Text cut at its blanks: `[M]` is one of one token, `___` (three underscores or more) one of `length` tokens.

    Raises:
        PerplabError: there is no blank.
    """
    parts = [part for part in _BLANK.split(text) if part]
    pieces: list[Piece] = [(1 if part == "[M]" else length) if _BLANK.fullmatch(part) else part for part in parts]
    if not any(isinstance(piece, int) for piece in pieces):
        raise PerplabError("the text has no blank to fill", "write ___ for a blank, or [M] for one token")
    return pieces


def fill(language_model: LanguageModel, pieces: Sequence[Piece], config: SamplingConfig, *, seed: int = 0) -> Filled:
    """Fill in blanks.

    Args:
        language_model: a masked model and its tokenizer.
        pieces: text, and the lengths of blanks in tokens.
        config: how to generate.
        seed: same seed, same text.

    Raises:
        PerplabError: text and blanks are longer than the model's positions, or the model cannot be used.
    """
    reader = Reader.of(language_model)
    encoder = text_encoder(language_model.tokenizer)
    mask = reader.diffusion.mask_token_id
    parts = [
        [mask] * piece if isinstance(piece, int) else encoder.encode(piece, add_special_tokens=False).ids
        for piece in pieces
    ]
    tokens = sum(map(len, parts))
    if reader.longest is not None and tokens > reader.longest:
        raise PerplabError(
            f"text and blanks of {tokens} tokens exceed the model's {reader.longest} positions",
            "shorten the text, or ask for fewer tokens with --max-new-tokens",
        )
    ids = torch.tensor([sum(parts, list(reader.opening)) + reader.closing], device=language_model.model.device)
    found = sample(reader.diffusion, ids, config, torch.Generator().manual_seed(seed))
    generated = found.ids[0, len(reader.opening) : len(reader.opening) + tokens]
    filled = torch.split(generated, [len(part) for part in parts])
    shown = [
        _decoded(language_model, part.tolist()) if isinstance(piece, int) else piece
        for part, piece in zip(filled, pieces, strict=True)
    ]
    blanks = sum(piece for piece in pieces if isinstance(piece, int))
    return Filled(
        text="".join(shown),
        fills=tuple(text for text, piece in zip(shown, pieces, strict=True) if isinstance(piece, int)),
        tokens=blanks,
        evaluations=int(found.evaluations[0]),
        expected_evaluations=expected_nfe(config.steps, blanks, reader.diffusion.schedule, config.method),
    )


def _decoded(language_model: LanguageModel, ids: list[int]) -> str:
    end = language_model.tokenizer.eos_token_id
    text = language_model.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)
    return str(text)
