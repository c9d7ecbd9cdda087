"""Streaming: a token store of a corpus larger than memory.

A generated JSON-lines corpus is built into a token store by a process that may allocate no more than 1 GiB
(`RLIMIT_DATA`, so that the system enforces it); the corpus of 1.25 GB does not fit there. Shown is the process's peak
of resident memory, at a tenth of the corpus and at all of it. Goal: below 2 GiB for any corpus, so no growth with it.
"""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from generated import write_jsonl, write_tokenizer
from measuring import in_new_process, peak_resident_mib
from perplab.text import open_corpus, token_store

GIGABYTE = 1_000_000_000
LIMIT = 1 << 30


def measure(quick: bool) -> list[dict[str, Any]]:
    sizes = (0.003, 0.03) if quick else (0.125, 1.25)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer")
        write_tokenizer(tokenizer)
        return [measure_size(gigabytes, tokenizer) for gigabytes in sizes]


def measure_size(gigabytes: float, tokenizer: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "generated.jsonl")
        write_jsonl(corpus, round(gigabytes * GIGABYTE))
        tokens, seconds, peak = in_new_process(build, corpus, tokenizer, Path(folder, "store"))
    return {
        "corpus, GB": gigabytes,
        "tokens, millions": tokens / 1e6,
        "MB/s": 1000 * gigabytes / seconds,
        "peak memory, MiB": peak,
        "limit, MiB": LIMIT >> 20,
    }


def build(corpus: Path, tokenizer_folder: Path, store_folder: Path) -> tuple[int, float, float]:
    """Tokens of the store, seconds to build it, and the peak of resident memory in MiB."""
    from transformers import PreTrainedTokenizerFast

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    started = time.perf_counter()
    store = token_store(open_corpus(str(corpus)), tokenizer, folder=store_folder, progress=False)
    return len(store.tokens), time.perf_counter() - started, peak_resident_mib()
