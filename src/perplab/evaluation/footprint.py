"""What a model takes to run: space on disk and in memory, and time.

Decisions:
- Two models are timed in turn on the same text (A B A B ...), so that a drift of the machine falls on both, and the
  ratio is of text a second: tokens of different vocabularies are not the same amount of work done.
- Peak memory is what scoring took beyond what the process already held, so models that are loaded together can both be
  told. Linux counts the largest resident memory and lets it be reset; where it does not, the figure is None.
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from perplab.models import LanguageModel
from perplab.scoring.conventions import convention_for, plan
from perplab.scoring.text_scores import longest_window, request_scores
from perplab.text import Document

TIMED_CHARACTERS = 16_384
"""Text that models are timed on: some batches of a small model, seconds of a large one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Footprint:
    """What a model takes to run.

    Args:
        parameters: those that several places share counted once.
        weight_bytes: of parameters and buffers in memory.
        disk_bytes: of the safetensors files; None for a model that is not on disk.
        scoring_bytes: most memory that scoring took beside the weights; None where the system does not tell.
        tokens_per_second: of its own tokenizer, scored.
    """

    parameters: int
    weight_bytes: int
    disk_bytes: int | None
    scoring_bytes: int | None
    tokens_per_second: float


@dataclass(frozen=True)
class Timing:
    """How fast a model scores.

    Args:
        tokens: of its own tokenizer that the text has.
        seconds: for the text, median of some rounds.
    """

    tokens: int
    seconds: float


def footprint(language_model: LanguageModel, timing: Timing, scoring_bytes: int | None) -> Footprint:
    """What a model takes to run, with what was measured of it."""
    model, path = language_model.model, language_model.path
    return Footprint(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors),
        disk_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")) if path else None,
        scoring_bytes=scoring_bytes,
        tokens_per_second=timing.tokens / timing.seconds,
    )


def time_in_turn(models: Sequence[LanguageModel], documents: Iterable[Document], rounds: int) -> list[Timing]:
    """Time models on the beginning of the same documents, after one round to warm up.

    Raises:
        PerplabError: whatever the engine refuses.
    """
    sample = list(_beginning(documents))
    conventions = [convention_for(model, None) for model in models]
    requests = [
        [
            request
            for document in plan(convention, model.tokenizer, sample, longest_window(model, convention))
            for request in document.requests
        ]
        for model, convention in zip(models, conventions, strict=True)
    ]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(1 + rounds):
        for seconds, model, asked, convention in zip(taken, models, requests, conventions, strict=True):
            started = time.perf_counter()
            for _ in request_scores(model, asked, convention):
                pass
            seconds.append(time.perf_counter() - started)
    return [
        Timing(sum(len(request.continuation) for request in asked), statistics.median(seconds[1:]))
        for seconds, asked in zip(taken, requests, strict=True)
    ]


def with_peak_memory(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """What `call` returns, and the most memory it held beyond what was held before, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        return result, torch.cuda.max_memory_allocated(device) - before
    before_resident = _forgotten_peak()
    result = call()
    return result, None if before_resident is None else _resident("VmHWM") - before_resident


def _beginning(documents: Iterable[Document]) -> Iterator[Document]:
    left = TIMED_CHARACTERS
    for document in documents:
        if left <= 0:
            return
        yield Document(document.text[:left], document.domain, document.name)
        left -= len(document.text)


def _forgotten_peak() -> int | None:
    """Let this process's peak begin at what is resident now, and say how much that is; None where that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that was freed before counts as already held
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    """A line of Linux's account of this process, in bytes. `ru_maxrss` would begin at its parent's size."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
