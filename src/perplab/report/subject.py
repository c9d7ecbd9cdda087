"""One model as the page shows it: the scores of a whole corpus, and every token of a few documents up close.

- Figures are over everything. Up close are the beginnings of some documents: domains take turns, each giving its
  documents in the order of the corpus, so what is shown is neither chosen for its costs nor all of one kind.
- A beginning ends at a byte of the text and not at a token, so two models show the same text.
- The alternatives of a token are asked from the very context it was scored from.
- A token's text is what its bytes add to the characters before it: a token that only begins a character has none, and
  the one that completes the character has all of it. Put together, the tokens give back the text.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.report.config import ReportConfig
from perplab.scoring import TokenScores, score
from perplab.scoring.alternatives import Alternatives, alternatives
from perplab.scoring.conventions import CONVENTIONS, DEFAULT, PlannedDocument, max_length_of, plan
from perplab.scoring.requests import Request
from perplab.scoring.token_classes import TokenClassifier, token_classifier
from perplab.text import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Excerpt:
    """The beginning of a document as one model's tokens.

    Attributes:
        document: its row in the scores' documents.
        num_tokens: of the whole document.
        texts: of each token; empty where its bytes complete no character.
        sizes: (tokens,) int64, bytes of each token.
        nll: (tokens,) float32, nats.
        rank: (tokens,) int32, 1 for the likeliest.
        entropy: (tokens,) float32, nats, of the distribution that each token was drawn from.
        alternatives: the likeliest tokens at each place.
    """

    document: int
    num_tokens: int
    texts: Sequence[str]
    sizes: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float32]
    rank: npt.NDArray[np.int32]
    entropy: npt.NDArray[np.float32]
    alternatives: Alternatives


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in a report.

    Attributes:
        name: what the page calls it.
        scores: of the corpus, with the columns `rank` and `entropy`.
        excerpts: the documents shown up close.
        classifier: of its tokens.
        spelling: how the page writes each token that is an alternative in the excerpts, by id.
    """

    name: str
    scores: TokenScores
    excerpts: Sequence[Excerpt]
    classifier: TokenClassifier
    spelling: Mapping[int, str]

    def scores_of(self, document: int) -> TokenScores:
        """The scores of one document alone."""
        begin, end = np.searchsorted(self.scores.tokens["document"].to_numpy(), [document, document + 1])
        tokens = self.scores.tokens.slice(begin, end - begin)
        alone = pa.array(np.zeros(end - begin, dtype=np.int32))
        tokens = tokens.set_column(tokens.column_names.index("document"), "document", alone)
        return TokenScores(tokens, self.scores.documents.slice(document, 1), self.scores.origin)


def study(
    language_model: LanguageModel,
    documents: Iterable[Document],
    config: ReportConfig | None = None,
    *,
    watch: Callable[[int, int], None] | None = None,
) -> Subject:
    """Score documents with a model and look at some of them up close.

    Args:
        language_model: the model.
        documents: a corpus or a list; read twice, so an iterator that can be read once will not do.
        config: how many documents to show, and how much of each.
        watch: called with the number of tokens scored and of bytes read since it was called last.

    Raises:
        PerplabError: `documents` can be read only once, or scoring refuses the text or the model.
    """
    if isinstance(documents, Iterator):
        raise PerplabError("documents that can be read only once cannot be shown", "give a corpus or a list")
    settings = config or ReportConfig()
    scores = score(language_model, documents, convention=DEFAULT, metrics=("rank", "entropy"), watch=watch)
    scores = replace(scores, origin={**scores.origin, "model_fingerprint": language_model.fingerprint})
    rows = shown_documents(scores, settings.shown_documents)
    texts = {row: document for row, document in enumerate(islice(documents, max(rows) + 1)) if row in rows}
    excerpts = [_excerpt(language_model, scores, row, texts[row], settings) for row in rows]
    used = np.unique(np.concatenate([excerpt.alternatives.token_ids.ravel() for excerpt in excerpts]))
    spelling = {int(token): spelled(language_model.tokenizer, int(token)) for token in used}
    return Subject(language_model.name, scores, excerpts, token_classifier(language_model.tokenizer), spelling)


def shown_documents(scores: TokenScores, count: int) -> list[int]:
    """Rows of `count` documents: the first of every domain that has a token, then the second of every domain, ..."""
    domains = scores.documents["domain"].to_pylist()
    queues: dict[str, list[int]] = {}
    for row in np.unique(scores.tokens["document"].to_numpy()).tolist():
        queues.setdefault(domains[row], []).append(row)
    turns = chain.from_iterable(zip_longest(*queues.values()))
    return list(islice((row for row in turns if row is not None), count))


def characters(content: bytes, ends: Iterable[int]) -> list[str]:
    """What each token adds to the text, for tokens that end at `ends` in its UTF-8; together they are its beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    borders = [0, *ends]
    return [decoder.decode(content[start:end]) for start, end in pairwise(borders)]


def spelled(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str:
    """A token as text, with the blank it begins with; as its vocabulary writes it where it is no whole character."""
    once, twice = (
        tokenizer.decode([token_id] * times, clean_up_tokenization_spaces=False, skip_special_tokens=False)
        for times in (1, 2)
    )
    text = str(twice)[len(once) :]  # some tokenizers drop a blank that begins a text
    if text and "\ufffd" not in text:
        return text
    return str(tokenizer.convert_ids_to_tokens(token_id) or f"#{token_id}")  # models pad their vocabularies


def _excerpt(
    language_model: LanguageModel, scores: TokenScores, row: int, document: Document, config: ReportConfig
) -> Excerpt:
    max_length = max_length_of(language_model)
    (planned,) = plan(CONVENTIONS[DEFAULT], language_model.tokenizer, [document], max_length)
    count = max(1, int(np.searchsorted(planned.ends, config.shown_bytes, side="right")))
    begin, end = np.searchsorted(scores.tokens["document"].to_numpy(), [row, row + 1])
    columns = scores.tokens.slice(begin, count)
    return Excerpt(
        document=row,
        num_tokens=int(end - begin),
        texts=characters(document.text.encode("utf-8"), planned.ends[:count].tolist()),
        sizes=planned.ends[:count] - planned.starts[:count],
        nll=columns["nll"].to_numpy(),
        rank=columns["rank"].to_numpy(),
        entropy=columns["entropy"].to_numpy(),
        alternatives=alternatives(language_model, _beginning(planned, count), config.alternatives),
    )


def _beginning(planned: PlannedDocument, count: int) -> Iterator[Request]:
    """The requests that score the first `count` tokens of a document."""
    for request, first in zip(planned.requests, planned.first_positions, strict=True):
        if first < count:
            yield Request(request.context, request.continuation[: count - first])
