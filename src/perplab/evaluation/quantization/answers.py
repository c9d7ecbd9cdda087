"""What a model answers to prompts: the likeliest token each time, many prompts at once.

Prompts of one length go through the model together, without padding, so no answer depends on what it is batched with.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.position_limit import position_limit
from perplab.text import boundary_tokens, text_encoder

_BATCH_TOKENS = 4_096


def answers(language_model: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Continue each prompt greedily.

    Args:
        language_model: the model and its tokenizer.
        prompts: what to continue; each is begun by the token that begins documents.
        max_new_tokens: longest answer.

    Returns:
        The continuations, without the prompts, up to the end of the document.

    Raises:
        PerplabError: a prompt and its answer do not fit the model's positions.
    """
    model, tokenizer = language_model.model, language_model.tokenizer
    begin, end = boundary_tokens(tokenizer)
    encoded = text_encoder(tokenizer).encode_batch(list(prompts), add_special_tokens=False)
    ids = [[begin, *encoding.ids] for encoding in encoded]
    longest = max(map(len, ids), default=0) + max_new_tokens
    limit = position_limit(model.config)
    if limit is not None and longest > limit:
        raise PerplabError(
            f"a prompt with its answer takes {longest} tokens and the model has {limit} positions",
            "ask shorter questions, or leave out the tasks that write",
        )
    found = [""] * len(ids)
    for places in _batches(ids, max_new_tokens):
        input_ids = torch.tensor([ids[place] for place in places], device=model.device)
        with torch.no_grad():
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=end,
                eos_token_id=end,
            )
        texts = tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            found[place] = text
    return found


def _batches(ids: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
    """Places of prompts that have one length, so many that a batch stays small."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, tokens in enumerate(ids):
        by_length[len(tokens)].append(place)
    for length, places in by_length.items():
        size = max(1, _BATCH_TOKENS // (length + max_new_tokens))
        yield from (places[start : start + size] for start in range(0, len(places), size))
