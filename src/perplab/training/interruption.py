"""Ctrl-C and termination as a request: the step under way is finished and saved before the run stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask for a stop; asking twice stops at once, without saving."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn SIGINT and SIGTERM into requests while the block runs. Does nothing outside the main thread."""
    interruption = Interruption()
    handlers = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, interruption.request)
    except ValueError:  # only the main thread may set handlers
        pass
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
