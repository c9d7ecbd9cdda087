"""Scoring text with any causal language model.

Decisions:
- A document is preceded by the token that begins documents, so its first token has a cost like any other and every byte
  counts.
- A document longer than the model's positions is scored in windows that overlap by half: each token after the first
  window is predicted from at least half a window of what comes before it.
- Log-probabilities are taken in float32, whatever the model computes in.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from perplab.errors import PerplabError
from perplab.models import LanguageModel
from perplab.scoring.token_scores import TokenScores
from perplab.text import Document, boundary_tokens, text_encoder, token_bytes

UNLIMITED_WINDOW = 2048
"""Window for models whose positions have no limit."""


def score(language_model: LanguageModel, text: str | Iterable[Document]) -> TokenScores:
    """What every token of a text costs.

    Args:
        language_model: the model and its tokenizer.
        text: one text, or documents.

    Raises:
        PerplabError: there is nothing to score, or the model gives costs that are not finite.
    """
    documents = [Document(text, "text", "text")] if isinstance(text, str) else text
    encoder = text_encoder(language_model.tokenizer)
    lengths = token_bytes(language_model.tokenizer)
    bos, _ = boundary_tokens(language_model.tokenizer)
    columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _TOKEN_COLUMNS}
    rows: list[tuple[str, str, int]] = []
    for document in documents:
        ids = np.array(encoder.encode(document.text, add_special_tokens=False).ids, dtype=np.int32)
        ends = np.cumsum(lengths[ids])
        columns["document"].append(np.full(len(ids), len(rows), dtype=np.int32))
        columns["token_id"].append(ids)
        columns["start"].append(ends - lengths[ids])
        columns["end"].append(ends)
        columns["nll"].append(_document_nll(language_model, np.concatenate(([bos], ids)), document.name))
        rows.append((document.name, document.domain, len(document.text.encode("utf-8"))))
    if sum(map(len, columns["nll"])) == 0:
        raise PerplabError("there is no token to score", "give a text that is not empty")
    tokens = pa.table({name: pa.array(np.concatenate(parts)) for name, parts in columns.items()})
    names, domains, sizes = zip(*rows, strict=True)
    return TokenScores(tokens, pa.table({"name": names, "domain": domains, "bytes": pa.array(sizes, pa.int64())}))


_TOKEN_COLUMNS = ("document", "token_id", "start", "end", "nll")


def _document_nll(language_model: LanguageModel, ids: npt.NDArray[np.integer], name: str) -> npt.NDArray[np.float32]:
    """Cost of `ids[1:]`, each given what its window holds before it."""
    model = language_model.model
    nll = np.empty(len(ids) - 1, dtype=np.float32)
    window = getattr(model.config, "max_position_embeddings", None) or UNLIMITED_WINDOW
    for begin, first_new, end in _windows(len(nll), window):
        inputs = torch.from_numpy(ids[begin:end].astype(np.int64))[None].to(model.device)
        labels = torch.from_numpy(ids[first_new + 1 : end + 1].astype(np.int64)).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=inputs, use_cache=False).logits[0, first_new - begin :].float()
            costs = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        nll[first_new:end] = costs.cpu().numpy()
    if not np.isfinite(nll).all():
        position = int(np.flatnonzero(~np.isfinite(nll))[0])
        raise PerplabError(
            f"{language_model.name} gives no finite cost for token {position} of {name}",
            "check the weights, or load the model in float32",
        )
    return nll


def _windows(targets: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Windows over `targets` predictions as (first input, first prediction that is new, end)."""
    begin = end = 0
    while end < targets:
        first_new, end = end, min(targets, begin + window)
        yield begin, first_new, end
        begin = end - window // 2
