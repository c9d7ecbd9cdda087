"""Continuing many prompts at once, each until one of some strings appears.

Decisions:
- Prompts of similar length share a batch and are padded on the left, where the attention mask hides the padding and
  positions count from the first real token. A batch therefore continues each prompt as it would be continued alone.
- A row stops as soon as a stop string is in what it generated; the others go on. What is given back is cut before the
  first place of each stop string, one string after another.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from perplab.models import LanguageModel
from perplab.scoring.requests import TokenIds
from perplab.text import boundary_tokens

BATCH_TOKENS = 8192
"""Tokens of a batch at its end, prompts, padding and continuations together."""


def continue_until(
    language_model: LanguageModel,
    prompts: Sequence[TokenIds],
    stop: Sequence[str],
    max_new_tokens: int,
    *,
    batch_tokens: int | None = None,
    **generation: Any,
) -> Iterator[tuple[int, str]]:
    """Continue prompts, the longest first.

    Args:
        language_model: the model and its tokenizer.
        prompts: token ids, (tokens,) each, at least one.
        stop: strings that end a continuation; they are not part of it.
        max_new_tokens: longest continuation.
        batch_tokens: most tokens in a batch; None for `BATCH_TOKENS`.
        generation: further arguments of `model.generate`, such as `do_sample` and `temperature`.

    Yields:
        The number of a prompt and its continuation.
    """
    tokenizer = language_model.tokenizer
    _, eos = boundary_tokens(tokenizer)
    stops = [string for string in (*stop, tokenizer.decode([eos])) if string]
    for batch in _batches([len(prompt) for prompt in prompts], max_new_tokens, batch_tokens or BATCH_TOKENS):
        input_ids, mask = _padded([prompts[index] for index in batch], eos)
        width = input_ids.shape[1]
        with torch.no_grad():
            output = language_model.model.generate(
                input_ids.to(language_model.model.device),
                attention_mask=mask.to(language_model.model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=eos,
                stopping_criteria=StoppingCriteriaList([_Stop(tokenizer, stops, width)]),
                **generation,
            )
        for index, row in zip(batch, output[:, width:].tolist(), strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)
            for string in stops:
                text = text.partition(string)[0]
            yield index, text


class _Stop(StoppingCriteria):
    """Which rows have a stop string in what they generated.

    Every token stands for a byte or more, so a stop string that ends in the last token begins at most as many tokens
    before as it has bytes; one more keeps a space that decoders drop from the beginning of a text.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._prompt_length = prompt_length
        self._lookback = 1 + max(len(string.encode("utf-8")) for string in stops)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        begin = max(self._prompt_length, input_ids.shape[1] - self._lookback)
        tails = self._tokenizer.batch_decode(input_ids[:, begin:])
        stopped = [any(string in tail for string in self._stops) for tail in tails]
        return torch.tensor(stopped, device=input_ids.device)


def _batches(lengths: Sequence[int], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts of similar length, so many that the longest of each batch times its rows fits."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (lengths[batch[0]] + max_new_tokens) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(prompts: Sequence[TokenIds], padding: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left and which of their tokens are real, both (prompts, longest)."""
    width = max(map(len, prompts))
    input_ids = np.full((len(prompts), width), padding, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
