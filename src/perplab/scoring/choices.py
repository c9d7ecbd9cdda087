"""Multiple choice: what each of some continuations costs after a context.

Decisions:
- Choices are compared as whole texts. Context and choice are encoded together, and everything from the first token that
  reaches into the choice, or differs between the choices, is scored. Tokenizers join characters across the border, such
  as `(` with the name after it; where the context is cut off by its own number of tokens, such a choice is scored in
  part or has nothing to score.
- All choices of an item are scored after the same context, so it is computed once. It begins with the tokenizer's bos
  token; where it and the longest choice exceed the model's positions it loses its beginning, for every choice alike.
- Three costs, since each answers another question: the sum is the probability of the choice, per token and per byte
  take away most of what a longer choice costs for being longer.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.conventions import max_length_of
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request, TokenIds
from perplab.text import boundary_tokens, text_encoder

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_ITEMS_ENCODED_AT_ONCE = 64

Item = tuple[str, Sequence[str]]
"""A context, which may be empty, and its choices, none of which is."""


@dataclass(frozen=True, eq=False)
class ChoiceCosts:
    """What the choices of one item cost.

    Attributes:
        nll: (choices,) nats, summed over the scored tokens.
        num_tokens: (choices,) scored tokens.
        num_bytes: (choices,) UTF-8 bytes of the choice itself.
    """

    nll: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]

    @property
    def nll_per_token(self) -> npt.NDArray[np.float64]:
        """Nats a scored token, (choices,)."""
        return self.nll / self.num_tokens

    @property
    def nll_per_byte(self) -> npt.NDArray[np.float64]:
        """Nats a byte of the choice, (choices,)."""
        return self.nll / self.num_bytes


def score_choices(
    language_model: LanguageModel, items: Iterable[Item], *, batch_tokens: int | None = None
) -> Iterator[ChoiceCosts]:
    """Score the choices of each item.

    Args:
        language_model: the model and its tokenizer.
        items: contexts with their choices, read as a stream.
        batch_tokens: tokens that go through the model at once; None for the engine's choice.

    Yields:
        The costs of each item's choices, in order.

    Raises:
        PerplabError: an item has no choice, a choice is empty or does not fit the model's positions, or a cost is not
            finite.
    """
    waiting: deque[Sequence[str]] = deque()
    scores = score_requests(language_model, _requests(language_model, items, waiting), batch_tokens=batch_tokens)
    for first in scores:
        choices = waiting.popleft()
        nll = [first["nll"], *(rest["nll"] for rest in islice(scores, len(choices) - 1))]
        yield ChoiceCosts(
            np.array([costs.sum(dtype=np.float64) for costs in nll]),
            np.array([len(costs) for costs in nll]),
            np.array([len(choice.encode("utf-8")) for choice in choices]),
        )


def _requests(language_model: LanguageModel, items: Iterable[Item], waiting: deque[Sequence[str]]) -> Iterator[Request]:
    """The requests of all items, one a choice; its choices join `waiting` before the first of them."""
    encoder = text_encoder(language_model.tokenizer)
    bos, _ = boundary_tokens(language_model.tokenizer)
    max_length = max_length_of(language_model)
    stream = iter(items)
    while group := list(islice(stream, _ITEMS_ENCODED_AT_ONCE)):
        for (context, choices), encodings in zip(group, _encoded(encoder, group), strict=True):
            waiting.append(choices)
            yield from _item_requests(encodings, len(context), bos, max_length)


def _encoded(encoder: "Tokenizer", items: Sequence[Item]) -> Iterator[list["Encoding"]]:
    for context, choices in items:
        if not choices or not all(choices):
            raise PerplabError(
                f"a choice after {context[-40:]!r} is empty or missing",
                "give each item at least one choice, none empty",
            )
    texts = [context + choice for context, choices in items for choice in choices]
    encodings = iter(encoder.encode_batch(texts, add_special_tokens=False))
    for _, choices in items:
        yield list(islice(encodings, len(choices)))


def _item_requests(
    encodings: Sequence["Encoding"], context_characters: int, bos: int, max_length: int
) -> list[Request]:
    ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    within = min(_tokens_within(encoding, context_characters) for encoding in encodings)
    shared = _common_prefix(ids, within)
    continuations = [tokens[shared:] for tokens in ids]
    longest = max(map(len, continuations))
    if longest > max_length:
        raise PerplabError(
            f"a choice of {longest} tokens does not fit the model's {max_length} positions", "give shorter choices"
        )
    context = np.concatenate(([bos], ids[0][:shared])).astype(np.int32)[-(max_length + 1 - longest) :]
    return [Request(context, continuation) for continuation in continuations]


def _tokens_within(encoding: "Encoding", characters: int) -> int:
    """How many tokens end before the text's first `characters` characters do."""
    return next((index for index, (_, end) in enumerate(encoding.offsets) if end > characters), len(encoding.ids))


def _common_prefix(ids: Sequence[TokenIds], at_most: int) -> int:
    first = ids[0][:at_most]
    differences = [np.flatnonzero(first != other[:at_most]) for other in ids[1:]]
    return min((int(places[0]) for places in differences if len(places)), default=at_most)
