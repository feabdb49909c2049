"""Whose turn it is to send a request: limits in all and for each host, rates, pauses that a host asked for.

Requests are let go in the order of their URLs as far as their hosts allow, so a slow host holds up only itself. All of
it runs in one event loop; a turn costs a few heap operations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

_KEPT_HOSTS = 10_000
"""Idle hosts remembered for their rate or pause; beyond it those with nothing to remember are dropped."""


class TokenBucket:
    """At most `rate` requests a second in the long run, and `burst` at once.

    >>> bucket = TokenBucket(rate=2.0, burst=1)
    >>> bucket.next_at(10.0), bucket.take(10.0), bucket.next_at(10.0)
    (10.0, None, 10.5)
    """

    def __init__(self, rate: float, burst: int = 1) -> None:
        self.rate = rate
        self._burst = burst
        self._full_at = 0.0

    def next_at(self, now: float) -> float:
        """The time from which the next request may go, `now` or later."""
        return max(now, self._full_at - (self._burst - 1) / self.rate)

    def take(self, now: float) -> None:
        self._full_at = max(self._full_at, now) + 1 / self.rate

    def slow_down(self, rate: float) -> None:
        """Spaces requests evenly at no more than a rate, from the next one on."""
        if rate < self.rate or self._burst > 1:
            self.rate, self._burst = min(rate, self.rate), 1


@dataclass
class _Host:
    bucket: TokenBucket | None = None
    queue: list[tuple[int, int, asyncio.Future[None]]] = field(default_factory=list)
    active: int = 0
    paused_until: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def forgettable(self, now: float) -> bool:
        idle = not self.queue and not self.active and self.paused_until <= now
        return idle and (self.bucket is None or self.bucket.next_at(now) <= now)


class Turns:
    """Gives out turns.

    Args:
        limit: turns at the same time.
        per_host: turns of one host at the same time.
        rate: requests a second to one host, or None.
        may_start: asked with the number of a URL before its turn; `wake` says when to ask again.
    """

    def __init__(self, limit: int, per_host: int, rate: float | None, may_start: Callable[[int], bool]) -> None:
        self._limit = limit
        self._per_host = per_host
        self._rate = rate
        self._may_start = may_start
        self._hosts: dict[str, _Host] = {}
        self._offers: list[tuple[int, int, str]] = []
        self._active = 0
        self._serial = 0
        self._loop = asyncio.get_running_loop()

    async def begin(self, number: int, name: str) -> None:
        """Waits for the turn of URL `number` at a host; `end` must follow, whatever happens."""
        self._serial += 1
        if self._serial % 1000 == 0:
            self._forget_idle()
        host = self._host(name)
        unopposed = not host.queue and not self._offers and self._active < self._limit
        if unopposed and self._ready(host) and self._may_start(number):
            self._start(host)
            return
        future: asyncio.Future[None] = self._loop.create_future()
        heappush(host.queue, (number, self._serial, future))
        self._offer(name, host)
        self.wake()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.end(name)
            raise

    def end(self, name: str) -> None:
        """Gives a turn back."""
        host = self._hosts[name]
        host.active -= 1
        self._active -= 1
        if host.queue:
            self._offer(name, host)
        self.wake()

    def pause(self, name: str, seconds: float) -> None:
        """Leaves a host alone for some time."""
        host = self._host(name)
        host.paused_until = max(host.paused_until, self._loop.time() + seconds)

    def slow_down(self, name: str, delay_s: float) -> None:
        """Keeps requests to a host at least so far apart."""
        host = self._host(name)
        if host.bucket is None:
            host.bucket = TokenBucket(1 / delay_s)
            host.bucket.take(self._loop.time())
        else:
            host.bucket.slow_down(1 / delay_s)

    def wake(self) -> None:
        """Lets go whatever may go now."""
        while self._offers and self._active < self._limit:
            number, serial, name = self._offers[0]
            host = self._hosts.get(name)
            if host is None or not host.queue or host.queue[0][1] != serial:
                heappop(self._offers)  # has gone already, or another came before it
                continue
            if not self._ready(host):
                heappop(self._offers)
                self._offer(name, host)
                continue
            if not self._may_start(number):
                return
            heappop(self._offers)
            future = heappop(host.queue)[2]
            if future.cancelled():
                self._offer(name, host)
                continue
            self._start(host)
            future.set_result(None)
            if host.queue:
                self._offer(name, host)

    def _start(self, host: _Host) -> None:
        host.active += 1
        self._active += 1
        if host.bucket is not None:
            host.bucket.take(self._loop.time())

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            bucket = TokenBucket(self._rate, max(1, int(self._rate))) if self._rate else None
            host = self._hosts[name] = _Host(bucket)
        return host

    def _ready(self, host: _Host) -> bool:
        if host.active >= self._per_host:
            return False
        timed = host.bucket is not None or host.paused_until
        return not timed or self._next_at(host) <= self._loop.time()

    def _next_at(self, host: _Host) -> float:
        now = self._loop.time()
        return max(host.paused_until, host.bucket.next_at(now) if host.bucket else now)

    def _offer(self, name: str, host: _Host) -> None:
        """Puts the first of a host's queue forward, now or when its rate allows."""
        while host.queue and host.queue[0][2].cancelled():
            heappop(host.queue)
        if not host.queue or host.active >= self._per_host:
            return
        if self._ready(host):
            heappush(self._offers, (*host.queue[0][:2], name))
        elif host.timer is None:
            host.timer = self._loop.call_at(self._next_at(host), self._resume, name, host)

    def _resume(self, name: str, host: _Host) -> None:
        host.timer = None
        self._offer(name, host)
        self.wake()

    def _forget_idle(self) -> None:
        if len(self._hosts) > _KEPT_HOSTS:
            now = self._loop.time()
            self._hosts = {name: host for name, host in self._hosts.items() if not host.forgettable(now)}
