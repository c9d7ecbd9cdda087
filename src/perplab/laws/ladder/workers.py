"""Processes that make cells: each cell in its own, on one thread, the longest first, as many at once as fit.

- Processes are forked from a server that has imported everything once, so that a cell does not wait for torch.
- A cell's process leaves the terminal's group: Ctrl-C reaches this process alone, which asks the others to stop. They
  finish the step under way and save it. They do the same when this process dies.
- A cell that fails does not stop the others.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess

from perplab.errors import PerplabError
from perplab.laws.ladder.measuring import CellWork, make_cell
from perplab.laws.ladder.planning import choose_next
from perplab.training import TrainingInterrupted
from perplab.training.interruption import interruptible

_POLL_SECONDS = 0.3
_STOPPED = "it was stopped"


@dataclass(frozen=True, eq=False)
class _Running:
    work: CellWork
    process: ForkServerProcess
    told: Connection

    def failure(self) -> str | None:
        """Why the process, which has ended, did not finish its cell; None where it did."""
        if self.process.exitcode == 0:
            return None
        try:
            return str(self.told.recv())
        except EOFError:
            return f"its process ended with status {self.process.exitcode}"


def make_cells(
    works: Sequence[CellWork], workers: int, memory: int, watch: Callable[[Sequence[CellWork]], None]
) -> dict[str, str]:
    """Make cells, several at once.

    Args:
        works: the cells.
        workers: most processes at once.
        memory: bytes for all of them together; one runs whatever it takes.
        watch: called several times a second and after the last cell with the cells at work.

    Returns:
        Why cells failed, by their names.

    Raises:
        TrainingInterrupted: somebody asked for a stop. All cells at work have saved themselves.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting = {work.planned: work for work in works}
    running: list[_Running] = []
    failures: dict[str, str] = {}
    with interruptible() as interruption:
        try:
            while (waiting or running) and not interruption.requested:
                at_work = [one.work.planned for one in running]
                if len(running) < workers and (chosen := choose_next(list(waiting), at_work, memory)) is not None:
                    running.append(_start(context, waiting.pop(chosen)))
                    continue
                connection.wait([one.process.sentinel for one in running], timeout=_POLL_SECONDS)
                for ended in [one for one in running if one.process.exitcode is not None]:
                    running.remove(ended)
                    if (why := ended.failure()) is not None:
                        failures[ended.work.planned.cell.name] = why
                watch([one.work for one in running])
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.join()
    if interruption.requested:
        raise TrainingInterrupted("stopped; the same command continues")
    return failures


def _start(context: ForkServerContext, work: CellWork) -> _Running:
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, tell), daemon=True)
    process.start()
    tell.close()
    return _Running(work, process, told)


def _work(work: CellWork, tell: Connection) -> None:
    """The whole life of a cell's process."""
    import torch

    os.setsid()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        make_cell(work)
    except PerplabError as error:
        tell.send(str(error))
        raise SystemExit(1) from None
    except (TrainingInterrupted, KeyboardInterrupt):
        tell.send(_STOPPED)
        raise SystemExit(1) from None
    except Exception as error:
        tell.send(f"{type(error).__name__}: {error}")
        raise


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
