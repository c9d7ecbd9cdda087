"""Token scores as a table: writing, reading and aggregating one million tokens, and the bootstrap.

One million tokens in 2,000 documents of very different lengths, with random costs, written to a folder, read back, and
summed to perplexity, bits per byte, and tables by domain, by place in the document and by window. The bootstrap
resamples 10,000 documents 10,000 times. One thread; medians of 5. Goals: under a second each, and 2 seconds for the
bootstrap.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from measuring import in_new_process, interleaved
from perplab.scoring import TokenScores
from perplab.scoring.bootstrap import bootstrap_ratio
from perplab.scoring.tables import by_domain, by_position, group_sums

TOKENS, DOCUMENTS = 1_000_000, 2_000
RESAMPLED = 10_000


def measure(quick: bool) -> list[dict[str, Any]]:
    return in_new_process(timed, *((20_000, 100, 1) if quick else (TOKENS, DOCUMENTS, 5)))


def timed(tokens: int, documents: int, repetitions: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    scores = random_scores(tokens, documents)
    rng = np.random.default_rng(1)
    nats, sizes = rng.gamma(2.0, 100.0, RESAMPLED), rng.gamma(2.0, 300.0, RESAMPLED)
    with tempfile.TemporaryDirectory() as folder:
        scores.save(Path(folder) / "read")
        numbers = iter(range(10**6))
        sides: dict[str, Callable[[], object]] = {
            "write": lambda: scores.save(Path(folder) / str(next(numbers))),
            "read": lambda: TokenScores.read(Path(folder) / "read"),
            "aggregate": lambda: aggregate(scores),
            "bootstrap": lambda: bootstrap_ratio(nats, sizes),
        }
        seconds = interleaved(sides, repetitions, warm_up=1)
        size = sum(file.stat().st_size for file in (Path(folder) / "read").iterdir())
    rows = [{"operation": side, "seconds": taken.median} for side, taken in seconds.items()]
    return [*rows, {"operation": "bytes on disk a token", "seconds": size / tokens}]


def aggregate(scores: TokenScores) -> None:
    fresh = TokenScores(scores.tokens, scores.documents, scores.origin)
    _ = fresh.perplexity, fresh.bits_per_byte
    for grouping in (by_domain(fresh), by_position(fresh)):
        group_sums(fresh, grouping, fresh.nll)
    np.bincount(fresh.tokens["window"].to_numpy(), weights=fresh.nll)


def random_scores(tokens: int, documents: int) -> TokenScores:
    rng = np.random.default_rng(0)
    owner = np.sort(rng.choice(documents, tokens, p=rng.dirichlet(np.ones(documents))))
    first = np.searchsorted(owner, np.arange(documents))
    position = np.arange(tokens) - first[owner]
    end = np.cumsum(rng.integers(1, 8, tokens))
    begin = np.concatenate(([0], end[:-1]))
    offset = np.append(begin, end[-1])[first][owner]
    columns = {
        "document": owner.astype(np.int32),
        "position": position.astype(np.int32),
        "token_id": rng.integers(0, 32_000, tokens).astype(np.int32),
        "start": begin - offset,
        "end": end - offset,
        "window": (np.cumsum(position % 512 == 0) - 1).astype(np.int32),
        "nll": rng.gamma(1.5, 2.0, tokens).astype(np.float32),
    }
    sizes = np.bincount(owner, weights=end - begin, minlength=documents).astype(np.int64)
    table = {
        "name": [f"document {index}" for index in range(documents)],
        "domain": [f"domain {index % 5}" for index in range(documents)],
        "bytes": pa.array(sizes),
        "words": pa.array(sizes // 6),
    }
    return TokenScores(pa.table(columns), pa.table(table), {"model": "random"})
