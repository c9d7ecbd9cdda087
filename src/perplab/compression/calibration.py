"""Text that shows a layer what its inputs look like.

- Documents are joined, each begun by the token that begins documents, and cut into windows without padding, so that
  every position is a real token and every batch has one shape.
- Windows are drawn from the beginning of the corpus, from some times more text than is needed: a corpus larger than
  memory costs no more than a small one, and a seed still changes what is drawn.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase

from perplab.errors import PerplabError
from perplab.text import Document, boundary_tokens, text_encoder

_READ_AHEAD = 8
"""Windows to choose from, for each that is drawn."""


def calibration_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    windows: int,
    length: int,
    seed: int,
) -> torch.Tensor:
    """Draw windows of tokens from a text, without replacement.

    Args:
        documents: the text.
        tokenizer: of the model.
        windows: how many; where the text has fewer, all of them are taken.
        length: tokens a window.
        seed: same seed, same windows.

    Returns:
        (windows, length) int64.

    Raises:
        PerplabError: the text is empty or shorter than one window, or all its tokens are the same.
    """
    tokens = _tokens(documents, tokenizer, windows * length * _READ_AHEAD)
    if not tokens:
        raise PerplabError("the calibration text is empty", "name a corpus with text in it")
    if len(tokens) < length:
        raise PerplabError(
            f"the calibration text has {len(tokens)} tokens, which is less than one window of {length}",
            "give more text or a shorter length",
        )
    if len(set(tokens[1:])) == 1:
        raise PerplabError(
            "the calibration text repeats one token, so a layer's inputs span one direction", "give varied text"
        )
    whole = torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:windows]
    return whole[drawn.sort().values]


def _tokens(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, most: int) -> list[int]:
    encoder, (begin, _) = text_encoder(tokenizer), boundary_tokens(tokenizer)
    tokens: list[int] = []
    for document in documents:
        tokens += [begin, *encoder.encode(document.text, add_special_tokens=False).ids]
        if len(tokens) >= most:
            break
    return tokens[:most]
