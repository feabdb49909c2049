"""How a person or a scheduler stops a long command: a first signal asks for a clean end, a second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Set by SIGINT or SIGTERM; a second signal ends the process at once."""

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        self.requested = False
        self._on_request = on_request

    def request(self) -> None:
        """Asks for a clean end, as a first signal does; from any thread."""
        self.requested = True
        if self._on_request is not None:
            self._on_request()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.request()


@contextmanager
def stop_on_signals(on_request: Callable[[], None] | None = None) -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for a clean stop within the block; `on_request` is called with the first of them.

    Python hands signals to the main thread alone: in another, the block changes nothing.
    """
    stop = Stop(on_request)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
