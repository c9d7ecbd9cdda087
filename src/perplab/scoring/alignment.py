"""Two models' costs of the same text, laid over one another.

Decisions:
- Documents are matched by name and size and then stand in the order of their names, so no figure depends on the order
  in which either model read them. Texts that do not match are refused, never cut to what they share.
- Where both models cut the text into the same tokens, costs stand side by side. Where tokenizers differ, they do so
  between byte boundaries that both cuts have, where both sums are exact; within such a stretch the second model's cost
  is shared out over the first's tokens in proportion to what these cost, so equal costs give no difference anywhere.
- Tokens that differ can be laid over one another only where every byte is scored.
- Scores of two conventions are refused, but for exact costs beside a bound on them: both are of every token.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from perplab.errors import PerplabError
from perplab.scoring.bootstrap import FloatArray
from perplab.scoring.conventions import ANY_ORDER_BOUND, DEFAULT
from perplab.scoring.token_scores import TokenScores

_MEND = "score both models on the same text"


@dataclass(frozen=True, eq=False)
class AlignedScores:
    """Costs of two models for the same text, a row a token of the first.

    Attributes:
        scores: the first model's, documents in the order of their names.
        first: (tokens,) nats of the first model.
        second: (tokens,) nats of the second for the same bytes.
        same_tokens: whether the second has the same tokens, so that its costs are not shared out.
        second_tokens: tokens of the second model.
    """

    scores: TokenScores
    first: FloatArray
    second: FloatArray
    same_tokens: bool
    second_tokens: int


def align(first: TokenScores, second: TokenScores) -> AlignedScores:
    """Lay the costs of a second model over those of a first.

    Raises:
        PerplabError: the documents or the conventions are not the same, or the tokens differ and some bytes are not
            scored.
    """
    _refuse_other_convention(first, second)
    _refuse_other_documents(first.documents, second.documents)
    first, second = _by_name(first), _by_name(second)
    nll, other_nll = first.nll.astype(np.float64), second.nll.astype(np.float64)
    same_tokens = all(
        np.array_equal(first.tokens[column].to_numpy(), second.tokens[column].to_numpy())
        for column in ("document", "token_id", "end")
    )
    if not same_tokens:
        for scores in (first, second):
            _refuse_unscored_bytes(scores)
        if first.origin.get("tokenizer_fingerprint", 1) == second.origin.get("tokenizer_fingerprint", 2):
            _refuse_other_text(first, second)
        other_nll = _shared_out(first, second)
    return AlignedScores(first, nll, other_nll, same_tokens, len(second.nll))


def _refuse_other_convention(first: TokenScores, second: TokenScores) -> None:
    names = [scores.origin.get("convention") for scores in (first, second)]
    if names[0] != names[1] and {*names} != {DEFAULT, ANY_ORDER_BOUND.name}:
        raise PerplabError(
            f"the first model is scored by the convention {names[0]}, the second by {names[1]}",
            "score both by one convention",
        )


def _refuse_other_documents(first: pa.Table, second: pa.Table) -> None:
    own, others = (
        list(zip(*table.select(["name", "bytes"]).to_pydict().values(), strict=True)) for table in (first, second)
    )
    for documents, counterparts, where in ((own, others, "second"), (others, own, "first")):
        sizes, left = dict(counterparts), Counter(counterparts)
        for name, size in documents:
            if left[name, size] == 0:
                known = sizes.get(name, size)
                fault = "is missing" if known == size else f"has {known:,} bytes and not {size:,}"
                raise PerplabError(f"{name} {fault} in the {where} model's scores", _MEND)
            left[name, size] -= 1


def _by_name(scores: TokenScores) -> TokenScores:
    """The same scores with documents in the order of their names and sizes."""
    documents = scores.documents.append_column("row", pa.array(range(scores.documents.num_rows), pa.int32()))
    order = documents.sort_by([(column, "ascending") for column in ("name", "bytes", "row")])["row"].to_numpy()
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    owner = rank[scores.tokens["document"].to_numpy()]
    tokens = scores.tokens.set_column(scores.tokens.column_names.index("document"), "document", pa.array(owner))
    return TokenScores(tokens.take(np.argsort(owner, kind="stable")), scores.documents.take(order), scores.origin)


def _refuse_unscored_bytes(scores: TokenScores) -> None:
    sizes = scores.tokens["end"].to_numpy() - scores.tokens["start"].to_numpy()
    owner = scores.tokens["document"].to_numpy()
    scored = np.bincount(owner, weights=sizes, minlength=scores.documents.num_rows)
    missing = np.flatnonzero(scored != scores.documents["bytes"].to_numpy())
    if len(missing):
        document = scores.documents.slice(int(missing[0]), 1).to_pylist()[0]
        raise PerplabError(
            f"{scored[missing[0]]:,.0f} of the {document['bytes']:,} bytes of {document['name']} are scored, but where "
            "tokens differ models are compared by bytes",
            "score both by the convention perplab, which counts every byte",
        )


def _refuse_other_text(first: TokenScores, second: TokenScores) -> None:
    """Name the document where one and the same tokenizer first found other tokens."""
    tokens, others = first.tokens, second.tokens
    both = min(len(tokens), len(others))
    differs = np.zeros(both, dtype=bool)
    for column in ("document", "token_id"):
        differs |= tokens[column].to_numpy()[:both] != others[column].to_numpy()[:both]
    place = int(differs.argmax()) if differs.any() else both
    longer = tokens if len(tokens) > place else others
    name = first.documents["name"][longer["document"][place].as_py()]
    raise PerplabError(f"{name} is another text in the second model's scores", _MEND)


def _shared_out(first: TokenScores, second: TokenScores) -> FloatArray:
    """The second model's cost for each token of the first, (first's tokens,)."""
    sizes = first.documents["bytes"].to_numpy()
    begins = np.concatenate(([0], np.cumsum(sizes + 1)[:-1]))  # one apart, so that no end is another's begin
    ends, other_ends = (begins[s.tokens["document"].to_numpy()] + s.tokens["end"].to_numpy() for s in (first, second))
    common = np.union1d(np.intersect1d(ends, other_ends), begins + sizes)
    stretch, other_stretch = np.searchsorted(common, ends), np.searchsorted(common, other_ends)
    own = np.bincount(stretch, weights=first.nll, minlength=len(common))
    other = np.bincount(other_stretch, weights=second.nll, minlength=len(common))
    count = np.bincount(stretch, minlength=len(common))
    free = own == 0  # what cost nothing has no proportions: such tokens take equal parts
    weight = np.where(free[stretch], 1.0, first.nll.astype(np.float64))
    shared: FloatArray = weight * (other / np.where(free, np.maximum(count, 1), own))[stretch]
    return shared
