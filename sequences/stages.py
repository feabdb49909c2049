"""Seconds spent by stage (`fetch`, `decode`, `render`, `encode`, `commit`, ...), for the logs of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Adds up wall time by stage. Costs under a microsecond a use; goes to `runs/`, never into the dataset.

    >>> stages = StageTimes()
    >>> with stages("decode"):
    ...     pass
    >>> list(stages.seconds)
    ['decode']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
