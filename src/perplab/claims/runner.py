"""Measuring a paper's figures over seeds.

- Each seed runs in a process of its own: as many at a time as there are cores, each with its share of the threads; one
  at a time on an accelerator.
- What is already known is not measured again. A failed seed does not stop the others; the error names its log.
- Interrupting the runner ends its processes; finished seeds are kept and the same call continues.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from perplab.claims.claim import Paper, Scale
from perplab.claims.results import Result, result_file
from perplab.errors import PerplabError

_POLL_SECONDS = 0.05
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_paper(
    paper: Paper, scale: Scale = "pocket", seeds: int = 3, data: Path | None = None, *, progress: bool = False
) -> list[Result]:
    """Measure a paper's figures for the seeds 0 to `seeds` - 1; one where nothing depends on the seed.

    Args:
        paper: what to measure.
        scale: how large.
        seeds: how many repetitions.
        data: folder of third-party data.
        progress: whether to show a progress bar on standard error.

    Raises:
        PerplabError: there are no seeds, the data folder does not exist, or a seed failed.
    """
    if seeds < 1:
        raise PerplabError(f"seeds is {seeds}", "give 1 or more")
    if data is not None and not data.is_dir():
        raise PerplabError(f"{data} is not a folder", "name the folder of third-party data")
    files = [result_file(paper, scale, seed, data) for seed in range(seeds if paper.seeded else 1)]
    missing = {seed: file for seed, file in enumerate(files) if not file.exists()}
    _measure(paper, scale, missing, data, progress)
    return [Result.read(file) for file in files]


def _measure(paper: Paper, scale: Scale, missing: dict[int, Path], data: Path | None, progress: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_a_time = max(1, min(len(missing), 1 if scale == "gpu" else cores))
    waiting = list(missing.items())
    running: dict[subprocess.Popen[bytes], Path] = {}
    failed: list[Path] = []
    with Progress(console=Console(stderr=True), transient=True, disable=not progress or not missing) as bar:
        task = bar.add_task(f"{paper.name}, {scale}", total=len(missing))
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    seed, file = waiting.pop(0)
                    running[_start(paper, scale, seed, file, data, threads=cores // at_a_time)] = file
                time.sleep(_POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    file = running.pop(process)
                    if process.returncode or not file.exists():
                        failed.append(file)
                    bar.advance(task)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    if failed:
        log = _log(failed[0])
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it was killed"])[-1]
        raise PerplabError(f"{failed[0].stem} of {paper.name} at scale {scale} failed: {last}", f"see {log}")


def _start(
    paper: Paper, scale: Scale, seed: int, file: Path, data: Path | None, threads: int
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "perplab.claims.measuring", paper.measure.__module__, scale, str(seed), str(file)]
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if data:
        command.append(str(data))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        log = _log(file).open("wb")
    except OSError as error:
        raise PerplabError(
            f"cannot write {file.parent} ({error.strerror or error})", "set PERPLAB_CACHE to a folder you own"
        ) from error
    with log:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _log(file: Path) -> Path:
    """What a seed's process prints, for whoever waits or looks for an error."""
    return file.with_suffix(".log")
