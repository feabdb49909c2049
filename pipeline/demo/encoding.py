"""Encoding video without becoming a real-time process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Gives the calling thread back the scheduling that it had.

    The AV1 encoder SVT-AV1 gives the thread that opens it SCHED_FIFO if it may, as root may. So would be all that this
    thread starts afterwards, and one such process that does not wait for anything starves everything else on its core.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
