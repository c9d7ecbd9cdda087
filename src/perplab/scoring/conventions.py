"""Named ways to take a perplexity: ours, and those of the tools whose numbers people compare.

What each tool does was read from its source. A convention is a choice on five points that do not depend on one another,
so that a mixture of two conventions is a convention as well.

- `perplab`: each document alone after the bos token, every byte counted; a document longer than the model's positions
  in windows that overlap by half.
- `lm-eval` (lm-evaluation-harness 0.4, `loglikelihood_rolling` of its `hf` backend): each document alone after a prefix
  token, and after the special tokens that the tokenizer adds, which are scored: where that is a bos, a document begins
  with two and pays for the second. Windows share one token, as context; the last is filled from the left.
- `nanochat` (`evaluate_bpb` over its validation loader): documents packed in rows that begin with bos, bits over the
  bytes of what is scored. Its loader never ends; ours ends with the text, in a last row that may be short.
- `hf-stride` (the guide on perplexity of transformers): documents joined by blank lines, overlapping windows, each of
  which scores what the one before did not reach. The guide weighs a window's mean loss with one token less than the
  window scores, except for the first; so does this. Its older copies took the plain mean of the window losses.
- `gptq` (the evaluation of GPTQ and its successors): the same text in windows that do not overlap, each but the first
  token of each scored, mean of the window means; what does not fill a window is dropped.
- `llamacpp` (`llama-perplexity -f FILE`): the file as it stands without its last line end, windows of 512, of each of
  which the second half is scored; what does not fill a window is dropped. Its `--ppl-stride` is another procedure.

Lengths are those of the tools where the model has the positions for them, and the model's positions otherwise.

`any-order-bound` stands apart: it gives no perplexity but an upper bound on it, by masked diffusion models, which have
nothing else to give. It reads text as `perplab` does, without a token before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.models.any_order import is_any_order, refuse_any_order
from perplab.scoring.requests import Request
from perplab.scoring.streams import Concatenation, DocumentEncoder, FirstToken, PlannedDocument, streams
from perplab.scoring.windows import FittedWindows, Windows, cut, fit
from perplab.text import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ANY_ORDER_BOUND",
    "CONVENTIONS",
    "Convention",
    "PlannedDocument",
    "convention_for",
    "convention_of",
    "fitted_windows",
    "max_length_of",
    "plan",
]

ScoredTokens = Literal["all", "tokens of the text", "second half of each window"]
"""Which tokens of a window are scored, of those that no window before it reached.

- `all`, special tokens that the tokenizer added among them.
- `tokens of the text`: without those.
- `second half of each window`: those with more than half of the window before them.
"""

Averaging = Literal["tokens", "window means", "window means by labels", "words", "bytes"]
"""How costs become one number.

- `tokens`: perplexity of a token.
- `window means`: perplexity of a token, each window counting alike.
- `window means by labels`: the same, each counting by its labels but one. A window's labels are the tokens it newly
  reaches; only of the first is one not scored anyway.
- `words`: perplexity of a word.
- `bytes`: bits per byte.
"""

DEFAULT = "perplab"

DEFAULT_MAX_LENGTH = 2048
"""Positions of models that know no limit."""

_UNSET_MAX_LENGTH = int(1e30)  # transformers' model_max_length where a tokenizer knows none


@dataclass(frozen=True, slots=True)
class Convention:
    """A way to take a perplexity.

    Args:
        name: what it is called in tables and messages.
        concatenation: which texts follow one another.
        first_token: what stands before a text.
        windows: what the model reads at a time.
        scored_tokens: which tokens of a window count.
        averaging: how costs become one number.
        window: tokens read in a window, in place of the usual number.
        stride: tokens between the begins of windows, in place of the usual number.
        draws: masks that hide parts of each window, whose mean bounds its cost; 0 predicts tokens one after another.
        seed: of those masks.
    """

    name: str
    concatenation: Concatenation
    first_token: FirstToken
    windows: Windows
    scored_tokens: ScoredTokens
    averaging: Averaging
    window: int | None = None
    stride: int | None = None
    draws: int = 0
    seed: int = 0

    @property
    def is_upper_bound(self) -> bool:
        """Whether its number bounds a perplexity from above, in place of being one."""
        return self.draws > 0

    @property
    def joins_documents(self) -> bool:
        """Whether its one document is the whole text."""
        return self.concatenation in ("joined by blank lines", "joined without a gap")

    @property
    def unit(self) -> str:
        """Of its number."""
        unit = {"words": "word perplexity", "bytes": "bits per byte"}.get(self.averaging, "token perplexity")
        return f"upper bound on {unit}" if self.is_upper_bound else unit


CONVENTIONS: Mapping[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(DEFAULT, "each document alone", "bos", Windows(stride="half"), "all", "tokens"),
        Convention(
            "lm-eval", "each document alone", "bos, then special tokens", Windows(tail="filled"), "all", "words"
        ),
        Convention("nanochat", "packed rows", "bos", Windows(length=2048), "tokens of the text", "bytes"),
        Convention(
            "hf-stride",
            "joined by blank lines",
            "special tokens",
            Windows(stride=512, keeps_last_prediction=False),
            "all",
            "window means by labels",
        ),
        Convention(
            "gptq",
            "joined by blank lines",
            "special tokens",
            Windows(length=2048, keeps_last_prediction=False, tail="dropped", least=1),
            "all",
            "window means",
        ),
        Convention(
            "llamacpp",
            "joined without a gap",
            "bos over each window's first",
            Windows(length=512, keeps_last_prediction=False, tail="dropped", least=2),
            "second half of each window",
            "tokens",
        ),
    )
}


ANY_ORDER_BOUND = Convention(
    "any-order-bound",
    "each document alone",
    "nothing",
    Windows(stride="half", keeps_last_prediction=False),
    "all",
    "tokens",
    draws=16,
)
"""An upper bound by a masked diffusion model, which no other model can give."""


def convention_for(language_model: LanguageModel, convention: str | Convention | None) -> Convention:
    """The convention asked for, by default the one that suits the model.

    Raises:
        PerplabError: there is none of this name, it takes an exact cost of a masked diffusion model, or a bound of
            another model.
    """
    bounds = is_any_order(language_model.model)
    chosen = convention_of(convention or (ANY_ORDER_BOUND if bounds else DEFAULT))
    if not chosen.is_upper_bound:
        refuse_any_order(language_model.model, language_model.name)
    elif not bounds:
        raise PerplabError(
            f"{language_model.name} predicts next tokens, so its costs are exact and need no {chosen.name}",
            f"choose one of {', '.join(CONVENTIONS)}",
        )
    return chosen


def convention_of(convention: str | Convention) -> Convention:
    """The convention of this name; a convention stands for itself.

    Raises:
        PerplabError: there is none.
    """
    if isinstance(convention, Convention):
        return convention
    if convention == ANY_ORDER_BOUND.name:
        return ANY_ORDER_BOUND
    if convention not in CONVENTIONS:
        raise PerplabError(f"unknown convention {convention!r}", f"choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[convention]


def max_length_of(language_model: LanguageModel) -> int:
    """Positions of the model, looked up as lm-eval does: config, then tokenizer, then 2048."""
    config = language_model.model.config.get_text_config()
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (positions := getattr(config, name, None)) is not None:
            return int(positions)
    told = language_model.tokenizer.model_max_length
    return DEFAULT_MAX_LENGTH if told >= _UNSET_MAX_LENGTH else int(told)


def fitted_windows(convention: Convention, max_length: int) -> FittedWindows:
    """The convention's windows with their length and stride for a model with `max_length` positions.

    Raises:
        PerplabError: the window is longer than that, the stride larger than the window, or one of them below 1.
    """
    return fit(convention.windows, max_length, convention.window, convention.stride)


def plan(
    convention: Convention, tokenizer: "PreTrainedTokenizerBase", documents: Iterable[Document], max_length: int
) -> Iterator[PlannedDocument]:
    """What to ask the engine.

    Args:
        convention: how to read the text.
        tokenizer: of the model.
        documents: the text.
        max_length: positions of the model, `max_length_of`.

    Returns:
        Documents as tokens with the requests that score them. Those of one packed row follow one another, and each
        one's requests begin with what the row holds before it. Where the convention joins documents, there is one.

    Raises:
        PerplabError: window or stride do not fit (`fitted_windows`), and while iterating: a text has no UTF-8 or is too
            short, or there is no token to score at all.
    """
    fitted = fitted_windows(convention, max_length)
    encoder = DocumentEncoder(tokenizer, convention.first_token)
    return _planned(convention, fitted, encoder, documents)


def _planned(
    convention: Convention, fitted: FittedWindows, encoder: DocumentEncoder, documents: Iterable[Document]
) -> Iterator[PlannedDocument]:
    anything = False
    for sequence in streams(documents, encoder, convention.concatenation, fitted.span):
        _add_requests(sequence, convention.scored_tokens, fitted, encoder.window_bos)
        anything = anything or any(document.requests for document in sequence)
        yield from sequence
    if not anything:
        raise PerplabError(
            f"there is no token to score by the convention {convention.name}", "give a longer text or a smaller window"
        )


def _add_requests(
    sequence: list[PlannedDocument], scored: ScoredTokens, fitted: FittedWindows, window_bos: int | None
) -> None:
    """Cut a sequence into windows and give each document the requests that score its tokens."""
    tokens = np.concatenate([part for document in sequence for part in (document.opening, document.token_ids)])
    owner = np.concatenate([_owners(number, document, scored) for number, document in enumerate(sequence)])
    begins = np.cumsum([0, *map(len, sequence)])
    for begin, first, end in cut(len(tokens), fitted):
        if scored == "second half of each window":
            first = max(first, begin + (end - begin) // 2 + 1)
        for start, stop in _runs(owner, first, end):
            context = tokens[begin:start].copy()
            if window_bos is not None:
                context[0] = window_bos
            document = sequence[owner[start]]
            document.requests.append(Request(context, tokens[start:stop], document.name))
            document.first_positions.append(int(start - begins[owner[start]] - len(document.opening)))


def _owners(number: int, document: PlannedDocument, scored: ScoredTokens) -> npt.NDArray[np.int64]:
    """For each place that the document takes up, its number, or -1 where nothing is ever scored."""
    never = document.added & (scored == "tokens of the text")
    return np.concatenate((np.full(len(document.opening), -1), np.where(never, -1, number)))


def _runs(owner: npt.NDArray[np.int64], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of [first, end) with one owner."""
    changes = first + 1 + np.flatnonzero(np.diff(owner[first:end]))
    for start, stop in pairwise((first, *changes.tolist(), end)):
        if start < stop and owner[start] >= 0:
            yield start, stop
