"""Old text where the old text is gone: what the old model makes up.

Documents are sampled as the model was trained, from the token that begins one, at temperature 1 over the whole
vocabulary, so that their distribution is the model's own. They are cut at the length of a row.
"""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perplab.artifacts import atomic_file
from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.text import Corpus, boundary_tokens, is_heldout, open_corpus
from perplab.training.config import TrainConfig
from perplab.training.distribution import Processes

SELF = "self"
"""In place of the name of an old corpus."""
_ROWS = 32
_PATIENCE = 20
"""Batches without any text after which a model is given up."""


def self_replay(language_model: LanguageModel, tokens: int, seed: int, *, length: int = 512) -> Iterator[str]:
    """Documents that a model makes up, until they hold so many tokens and one of them is of the held-out side.

    Args:
        language_model: what was trained on the old text.
        tokens: that are wanted in all, ends of documents counted.
        seed: of the sampling.
        length: of the longest document, in tokens.

    Raises:
        PerplabError: the model makes up no text.
    """
    _, eos = boundary_tokens(language_model.tokenizer)
    made, measured, found = 0, False, 0
    for batch in count():
        documents = [
            row[: row.index(eos)] if eos in row else row for row in _sampled(language_model, seed, batch, length)
        ]
        texts = [text for ids in documents if (text := language_model.tokenizer.decode(ids, skip_special_tokens=True))]
        yield from texts
        made += sum(len(ids) + 1 for ids in documents)
        measured = measured or any(map(is_heldout, texts))
        found += len(texts)
        if made >= tokens and measured:
            return
        if batch >= _PATIENCE and not found:
            raise PerplabError(f"{language_model.name} makes up no text", "name the old text with --replay-from")


def _sampled(language_model: LanguageModel, seed: int, batch: int, length: int) -> list[list[int]]:
    """Rows of tokens after the one that begins a document."""
    bos, eos = boundary_tokens(language_model.tokenizer)
    prompt = torch.full((_ROWS, 1), bos, device=language_model.model.device)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(int(np.random.SeedSequence((seed, batch)).generate_state(1)[0]))
        rows = language_model.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=length - 1,
            pad_token_id=eos,
            eos_token_id=eos,
            **sampling,
        )
    sampled: list[list[int]] = rows[:, 1:].tolist()
    return sampled


def own_text(folder: Path, parent: LanguageModel, config: TrainConfig, processes: Processes) -> Corpus:
    """A corpus of the parent's own making, as much of it as the run replays; kept in the run's folder.

    Raises:
        PerplabError: the parent makes up no text.
    """
    tokens = round(config.replay * (config.horizon_tokens or config.tokens))
    path = folder / f"self_replay-{tokens}-{config.seed}.jsonl"
    if processes.first and not path.exists():
        texts = self_replay(parent, tokens, config.seed, length=config.block_size)
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text, "domain": SELF}) + "\n" for text in texts)
    processes.wait()
    return open_corpus(str(path))
