"""Tokenising and packing: the token store against `datasets`.

From text to blocks of 512 tokens with one tokenizer of 8,192 tokens. perplab builds a token store and reads every block
once. The other side is what training scripts do: `Dataset.map(batched=True)` with the tokenizer, then a second map that
joins the tokens of a batch and cuts them (`group_texts`), with one process and with two; the better counts. Each run is
a process of its own with empty caches; megabytes are those of the text; medians of 3 runs taken in turn.
"""

import statistics
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from generated import write_jsonl, write_tokenizer
from measuring import in_new_process
from perplab.text import PackedBlocks, open_corpus, token_store

BLOCK = 512
REPETITIONS = 3
MEGABYTE = 1_000_000
BUILTIN = "builtin:python"


def measure(quick: bool) -> list[dict[str, Any]]:
    megabytes, repetitions = (2, 1) if quick else (20, REPETITIONS)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, generated = Path(folder, "tokenizer"), Path(folder, "generated.jsonl")
        write_tokenizer(tokenizer)
        write_jsonl(generated, megabytes * MEGABYTE)
        corpora = {f"generated jsonl, {megabytes} MB": str(generated)}
        if not quick:
            corpora = {BUILTIN: BUILTIN} | corpora
        return [compare(name, spec, tokenizer, repetitions) for name, spec in corpora.items()]


def compare(name: str, spec: str, tokenizer: Path, repetitions: int) -> dict[str, Any]:
    sides = {
        "perplab": with_token_store,
        "datasets, 1 process": partial(with_datasets, 1),
        "datasets, 2 processes": partial(with_datasets, 2),
    }
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repetitions):
        for side, build in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[side].append(in_new_process(build, spec, tokenizer, Path(folder)))
    megabytes = sum(len(document.text.encode("utf-8")) for document in open_corpus(spec)) / MEGABYTE
    speeds = {side: megabytes / statistics.median(seconds) for side, seconds in taken.items()}
    best_other = max(speed for side, speed in speeds.items() if side != "perplab")
    return {
        "corpus": name,
        "MB": megabytes,
        **{f"{side}, MB/s": speed for side, speed in speeds.items()},
        "ratio": speeds["perplab"] / best_other,
    }


def with_token_store(spec: str, tokenizer_folder: Path, folder: Path) -> float:
    """Seconds from a corpus's name to the last block."""
    tokenizer = load(tokenizer_folder)
    started = time.perf_counter()
    store = token_store(open_corpus(spec), tokenizer, folder=folder, progress=False)
    blocks = PackedBlocks(store, None, BLOCK)
    for index in range(len(blocks)):
        blocks.block(index)
    return time.perf_counter() - started


def with_datasets(processes: int, spec: str, tokenizer_folder: Path, folder: Path) -> float:
    """Seconds from the text to the dataset of blocks."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load(tokenizer_folder)
    started = time.perf_counter()
    if spec == BUILTIN:
        texts = datasets.Dataset.from_generator(builtin_rows, cache_dir=str(folder))
    else:
        texts = datasets.load_dataset("json", data_files=spec, split="train", cache_dir=str(folder))
    tokens = texts.map(
        lambda batch: tokenizer(batch["text"]), batched=True, num_proc=processes, remove_columns=texts.column_names
    )
    tokens.map(group_texts, batched=True, num_proc=processes)
    return time.perf_counter() - started


def builtin_rows() -> Any:
    for document in open_corpus(BUILTIN):
        yield {"text": document.text}


def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Join every column of a batch and cut it into blocks; the rest is dropped, as training scripts do."""
    joined = {name: list(chain.from_iterable(rows)) for name, rows in batch.items()}
    whole = len(joined["input_ids"]) // BLOCK * BLOCK
    blocks = {
        name: [values[start : start + BLOCK] for start in range(0, whole, BLOCK)] for name, values in joined.items()
    }
    return blocks | {"labels": blocks["input_ids"].copy()}


def load(tokenizer_folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
