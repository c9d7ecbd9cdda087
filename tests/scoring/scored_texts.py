"""Token scores made by hand: texts of bytes with a cost each, cut into tokens at given places."""

import numpy as np
import pyarrow as pa

from perplab.scoring.token_scores import TokenScores


def scored(byte_costs, cuts, *, names=None, domains=None, token_ids=None, origin=None):
    """Scores of documents whose tokens cost what their bytes cost.

    Args:
        byte_costs: for each document, an array of nats a byte.
        cuts: for each document, the ends of its tokens, ascending, the last of them its number of bytes.
        names: of the documents.
        domains: of the documents.
        token_ids: for each document, the ids of its tokens; by default the tokens' lengths.
        origin: of the scores.
    """
    columns = {name: [] for name in ("document", "position", "token_id", "start", "end", "nll")}
    for number, (costs, ends) in enumerate(zip(byte_costs, cuts, strict=True)):
        starts = [0, *ends[:-1]]
        columns["document"].append(np.full(len(ends), number))
        columns["position"].append(np.arange(len(ends)))
        columns["token_id"].append(np.subtract(ends, starts) if token_ids is None else token_ids[number])
        columns["start"].append(starts)
        columns["end"].append(ends)
        columns["nll"].append([np.sum(costs[start:end]) for start, end in zip(starts, ends, strict=True)])
    types = {"document": pa.int32(), "position": pa.int32(), "token_id": pa.int32(), "nll": pa.float32()}
    tokens = {name: pa.array(np.concatenate(parts), types.get(name, pa.int64())) for name, parts in columns.items()}
    tokens["window"] = tokens["document"]
    numbers = range(len(byte_costs))
    documents = {
        "name": names or [f"document {number}" for number in numbers],
        "domain": domains or ["prose" if number % 2 else "code" for number in numbers],
        "bytes": pa.array([len(costs) for costs in byte_costs], pa.int64()),
        "words": pa.array([1 for _ in numbers], pa.int64()),
    }
    return TokenScores(pa.table(tokens), pa.table(documents), origin or {})


def random_cuts(random, size):
    """Ends of tokens of one to seven bytes that cover `size` bytes."""
    ends = np.cumsum(random.integers(1, 8, size))
    return [*ends[ends < size].tolist(), size]


def random_texts(seed, number=12, longest=400):
    """Whole numbers of nats for each byte of some documents, so that sums are exact."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 5, size).astype(float) for size in random.integers(1, longest, number)]
