"""A cache with a time to live for each entry and a bound on the weight of all: least recently used goes first.

Safe to share between threads. Reading and writing cost a few dictionary operations.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class TimedCache(Generic[V]):
    """Values by name.

    Args:
        max_weight: largest sum of the weights of all entries; heavier single entries are not kept.
    """

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._entries: OrderedDict[str, tuple[V, float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> V | None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return None
            value, end, weight = entry
            if time.monotonic() >= end:
                self._weight -= weight
                del self._entries[name]
                return None
            self._entries.move_to_end(name)
            return value

    def put(self, name: str, value: V, ttl_s: float, weight: int = 1) -> None:
        with self._lock:
            if name in self._entries:
                self._weight -= self._entries.pop(name)[2]
            if weight > self._max_weight or ttl_s <= 0:
                return
            self._entries[name] = (value, time.monotonic() + ttl_s, weight)
            self._weight += weight
            while self._weight > self._max_weight:
                self._weight -= self._entries.popitem(last=False)[1][2]
