"""Fetching images over HTTP: many at once, delivered in order, polite, and in bounded memory.

An event loop in a thread works ahead of the reader by a window of URLs, which a dead host delays but does not stop.
What is checked is in `addresses`, `resolver` and `robots`; who waits for whom in `turns` and `download_buffer`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from uvd.sequences.reject import RejectedInput
from uvd.sources.client import Fetcher
from uvd.sources.download_buffer import DownloadBuffer
from uvd.sources.fetch_config import FetchConfig, FetchStats

Outcome = bytes | RejectedInput
_TOLD_EVERY = 16
"""Downloads taken before the event loop is told; telling it costs a system call."""


class _Failure:
    """An exception that is no verdict on an input: it ends the reading."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Window:
    """The downloads between the reader and the end of what it has asked for; lives in the event loop."""

    def __init__(self, config: FetchConfig, outcomes: SimpleQueue[Outcome | _Failure], stats: FetchStats) -> None:
        self._buffer = DownloadBuffer(config.max_buffered_bytes, config.concurrency)
        self._fetcher = Fetcher(config, self._buffer, stats)
        self._outcomes = outcomes
        self._finished: dict[int, Outcome | _Failure] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = 0

    def advance(self, urls: list[str], taken: int) -> None:
        """More URLs to download; the first `taken` of all have been taken by the reader."""
        self._buffer.taken(taken)
        for url in urls:
            task = asyncio.create_task(self._download(self._begun, url))
            self._begun += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._buffer.wake()
        self._fetcher.turns.wake()

    async def _download(self, number: int, url: str) -> None:
        outcome: Outcome | _Failure
        try:
            outcome = await self._fetcher.fetch(url, number)
        except RejectedInput as rejected:
            outcome = rejected
        except Exception as error:  # noqa: BLE001 - raised again in the reader's thread
            outcome = _Failure(error)
        self._finished[number] = outcome
        while self._buffer.delivered in self._finished:
            self._outcomes.put(self._finished.pop(self._buffer.delivered))
            self._buffer.delivered += 1

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fetcher.close()


def fetch_in_order(
    urls: Iterable[str], config: FetchConfig, stats: FetchStats | None = None
) -> Iterator[bytes | RejectedInput]:
    """Downloads URLs concurrently and yields each body, or the verdict on it, in the order of the input.

    Up to `config.lookahead` URLs are begun before the first of them is done. Bodies in memory are bounded by
    `config.max_buffered_bytes` and one more of `config.max_bytes`, whatever the servers send.

    Args:
        stats: is counted up while downloads go on.

    Raises:
        OSError: if this machine is short of memory or open files.
    """
    stats = stats or FetchStats()
    outcomes: SimpleQueue[Outcome | _Failure] = SimpleQueue()
    with _event_loop() as loop:
        window = asyncio.run_coroutine_threadsafe(_open(config, outcomes, stats), loop).result()
        try:
            yield from _read(iter(urls), config, loop, window, outcomes, stats)
        finally:
            asyncio.run_coroutine_threadsafe(window.close(), loop).result()


def _read(
    urls: Iterator[str],
    config: FetchConfig,
    loop: asyncio.AbstractEventLoop,
    window: _Window,
    outcomes: SimpleQueue[Outcome | _Failure],
    stats: FetchStats,
) -> Iterator[Outcome]:
    fed = taken = told = 0
    span, more = config.lookahead, True
    while True:
        free = span - (fed - taken)
        if more and (free >= _TOLD_EVERY or free == span):
            block = list(islice(urls, free))
            more = len(block) == free
            fed, told = fed + len(block), taken
            loop.call_soon_threadsafe(window.advance, block, taken)
        if taken == fed:
            return
        try:
            outcome = outcomes.get_nowait()
        except Empty:
            if told != taken:
                told = taken
                loop.call_soon_threadsafe(window.advance, [], taken)
            begun = time.monotonic()
            outcome = outcomes.get()
            stats.waited_s += time.monotonic() - begun
        if isinstance(outcome, _Failure):
            raise outcome.error
        taken += 1
        if taken - told >= _TOLD_EVERY:
            told = taken
            loop.call_soon_threadsafe(window.advance, [], taken)
        yield outcome


async def _open(config: FetchConfig, outcomes: SimpleQueue[Outcome | _Failure], stats: FetchStats) -> _Window:
    return _Window(config, outcomes, stats)


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fetch", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        _cancel_rest(loop)
        loop.close()


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    rest: set[asyncio.Task[Any]] = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))


__all__ = ["FetchConfig", "FetchStats", "fetch_in_order"]
