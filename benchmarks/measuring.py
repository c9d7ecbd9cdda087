"""How benchmarks measure: two sides in turn, each in a process of its own where memory or caches matter."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

MIB = 2**20


class Seconds(NamedTuple):
    """Wall time of one side over all repetitions."""

    median: float
    best: float


def interleaved(
    sides: Mapping[str, Callable[[], object]], repetitions: int, warm_up: int = 2, least_seconds: float = 0.0
) -> dict[str, Seconds]:
    """Time several sides in turn (A B A B ...), so that a drift of the machine falls on all of them.

    Args:
        sides: what to time, by name.
        repetitions: timed rounds.
        warm_up: untimed calls of each side before.
        least_seconds: a side that is quicker is called several times in each round, and the mean is taken.
    """
    calls = {}
    for name, side in sides.items():
        for _ in range(warm_up):
            once = _seconds(side, 1)
        calls[name] = max(1, round(least_seconds / once))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            taken[name].append(_seconds(side, calls[name]))
    return {name: Seconds(statistics.median(seconds), min(seconds)) for name, seconds in taken.items()}


def _seconds(side: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        side()
    return (time.perf_counter() - started) / calls


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a fresh interpreter, so that nothing is warm and no memory is shared."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resident_mib() -> float:
    """Memory of this process that is resident now."""
    return _status_mib("VmRSS")


def peak_resident_mib() -> float:
    """Largest resident memory of this process since it began or `forget_peak` was called.

    Read from Linux's `VmHWM`: `ru_maxrss` would begin at the size of the process that started this one.
    """
    return _status_mib("VmHWM")


def forget_peak() -> None:
    """Give freed memory back to the system, and let the peak begin at what is resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise OSError(f"/proc/self/status has no {field}")
