"""Text as bytes, for claims whose models need no tokenizer: batches to train on, and what held-out bytes cost."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from perplab.text import open_corpus
from perplab.text.documents import Split

BYTES = 256
"""The vocabulary."""

Bytes = npt.NDArray[np.int64]


def bytes_of(corpus: str, split: Split, size: int) -> Bytes:
    """The first `size` bytes of a corpus, documents joined by a zero byte."""
    text = b"\x00".join(document.text.encode() for document in open_corpus(corpus, split).limited(size))
    return np.frombuffer(text[:size], dtype=np.uint8).astype(np.int64)


def byte_batches(text: Bytes, seed: int, *, rows: int, length: int) -> Iterator[tuple[Bytes, Bytes]]:
    """Windows at random places, without end: inputs and what follows each, (rows, length)."""
    rng = np.random.default_rng(seed)
    while True:
        places = rng.integers(len(text) - length, size=(rows, 1)) + np.arange(length)
        yield text[places], text[places + 1]


@torch.inference_mode()
def nats_by_position(model: PreTrainedModel, text: Bytes, length: int) -> npt.NDArray[np.float64]:
    """Mean cost at each position, (length,), of windows side by side, in nats a byte."""
    rows = (len(text) - 1) // length
    costs = []
    for first in range(0, rows, 32):
        start, end = first * length, min(first + 32, rows) * length
        inputs, labels = (torch.from_numpy(text[start + by : end + by].reshape(-1, length)) for by in (0, 1))
        logits = model(input_ids=inputs, use_cache=False).logits
        costs.append(F.cross_entropy(logits.transpose(1, 2), labels, reduction="none"))
    mean: npt.NDArray[np.float64] = torch.cat(costs).double().mean(0).numpy()
    return mean
