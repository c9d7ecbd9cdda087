"""Training in processes of their own, which may be killed. A helper module, so that those processes can import it."""

import contextlib
import multiprocessing
import os
import signal
import socket

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["perplab.training"])  # imported once, then every process starts at once


def start(corpus, out, config, *, rank=0, number=1, port=0, prepare=None):
    """Start a process that trains; `prepare` runs first, there."""
    environment = {"PERPLAB_CACHE": os.environ["PERPLAB_CACHE"]}
    if number > 1:
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    process = CONTEXT.Process(target=_train, args=(corpus, str(out), config, environment, prepare))
    process.start()
    return process


def start_group(corpus, out, config, *, number, prepare=None):
    """Start as many processes as `torchrun` would, with the environment it gives them."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(corpus, out, config, rank=r, number=number, port=port, prepare=prepare) for r in range(number)]


def finish(*processes):
    """Wait for processes and return their exit codes."""
    for process in processes:
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _train(corpus, out, config, environment, prepare):
    os.environ.update({name: str(value) for name, value in environment.items()})
    import torch

    from perplab.training import TrainingInterrupted, train

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    with contextlib.suppress(TrainingInterrupted):
        train(corpus, out, config, progress=False)


class InterruptAfter:
    """Press Ctrl-C in the first process when this many steps are taken."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self):
        from perplab.training.metrics import MetricsLog

        write = MetricsLog.write

        def write_and_interrupt(log, step, **values):
            write(log, step, **values)
            if step == self.steps and "loss" in values and os.environ.get("RANK", "0") == "0":
                signal.raise_signal(signal.SIGINT)

        MetricsLog.write = write_and_interrupt


class KillAtRename:
    """SIGKILL before the rename of this number, counting all renames of files and folders of the run from 1."""

    def __init__(self, number):
        self.number = number

    def __call__(self):
        from pathlib import Path

        replace, counted = Path.replace, iter(range(1, self.number))

        def replace_or_die(path, target):
            if next(counted, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = replace_or_die
