"""Downloading one image: turns, robots.txt, redirects, retries, and a reason for whatever goes wrong.

One session of an event loop: keep-alive, one TLS context for the process with verification on, no cookies, no proxies,
no credentials. Details of rejects hold no times and no connections, so the same failure reads the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import aiohttp
from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.addresses import BlockedAddressError, check_address, literal_address, parse_url, redirect_target
from uvd.sources.download_buffer import DownloadBuffer, NoRoomError
from uvd.sources.fetch_config import FetchConfig, FetchStats
from uvd.sources.resolver import LOCAL_ERRORS, Answer, CheckedResolver, is_temporary
from uvd.sources.responses import check_encoding, check_status, read_body, read_robots, retry_after_s
from uvd.sources.robots import refused_by_header
from uvd.sources.robots_gate import RobotsGate, Verdict
from uvd.sources.timed_cache import TimedCache
from uvd.sources.turns import Turns

R = TypeVar("R")
Reader = Callable[[aiohttp.ClientResponse], Awaitable[R]]

KEEP_ALIVE_S = 2.0
"""Idle connections; longer would help few, as lists are shuffled, and hundreds of hosts a second would use up the open
files."""
ROBOTS = -1
"""Number of what is not an image: goes before all of them."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_BACKOFF_S = 30.0
_ROBOTS_CACHE_CHARACTERS = 32 << 20


class TransientError(Exception):
    """A failure that may pass; carries the verdict for when it does not."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.rejected = RejectedInput(reason, detail)


@dataclass
class HostMemory:
    """What a process knows about hosts, over all of its sessions with one config."""

    answers: TimedCache[Answer]
    verdicts: TimedCache[Verdict]
    threads: ThreadPoolExecutor
    closed: TimedCache[RejectedInput]
    """Hosts that asked for a long pause."""


@lru_cache(maxsize=1)
def host_memory(config: FetchConfig) -> HostMemory:
    return HostMemory(
        answers=TimedCache(config.dns_cache_size),
        verdicts=TimedCache(_ROBOTS_CACHE_CHARACTERS),
        closed=TimedCache(config.dns_cache_size),
        threads=ThreadPoolExecutor(config.dns_concurrency, thread_name_prefix="dns"),
    )


@cache
def tls_context() -> ssl.SSLContext:
    """The process's one context: certificates and host names are verified."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def allow_open_files(number: int) -> None:
    """Raises the soft limit on open files, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


class Fetcher:
    """One HTTP session; `fetch` downloads one URL. Make it inside the event loop that uses it."""

    def __init__(self, config: FetchConfig, buffer: DownloadBuffer, stats: FetchStats) -> None:
        self._config = config
        self._buffer = buffer
        self._stats = stats
        self._memory = host_memory(config)
        # Not one of `Seeds`: it decides when a request is repeated, never what is in the data.
        self._jitter = random.Random()
        self._resolver = CheckedResolver(config, self._memory.answers, self._memory.threads, stats)
        self.turns = Turns(config.concurrency, config.per_host, config.per_host_rate, buffer.may_start)
        self._robots = RobotsGate(config, self._memory.verdicts, self._robots_txt, self.turns.slow_down)
        connector = aiohttp.TCPConnector(
            limit=0, resolver=self._resolver, use_dns_cache=False, ssl=tls_context(), keepalive_timeout=KEEP_ALIVE_S
        )
        allow_open_files(4 * config.concurrency + 256)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent_header, "Accept": "image/*", "Accept-Encoding": "identity"},
            trust_env=False,
        )

    async def close(self) -> None:
        await self._resolver.close()
        await self._session.close()

    async def fetch(self, text: str, number: int = 0) -> bytes:
        """Downloads an image file, trying again after transient failures; `number` is its place in the order.

        Raises:
            RejectedInput: with the reason why there is no image.
            OSError: if this machine is short of memory or open files.
        """
        url = parse_url(text)
        while True:
            try:
                return await self._retrying(lambda: self._follow(url, number, self._image(number), self._robots.check))
            except NoRoomError as error:
                self._stats.abandoned += 1
                self._buffer.drop(number)
                await self._buffer.room(number, error.size)
            except BaseException:
                self._buffer.drop(number)
                raise

    def _image(self, number: int) -> Reader[bytes]:
        async def read(response: aiohttp.ClientResponse) -> bytes:
            check_encoding(response)
            tags = response.headers.getall("X-Robots-Tag", [])
            if tags and self._config.honour_opt_outs:
                refused = refused_by_header(tags, self._config.agent)
                if refused:
                    raise RejectedInput(Reason.OPTED_OUT_HEADER, ", ".join(refused))
            body = await read_body(response, self._config, lambda size: self._buffer.hold(number, size))
            self._stats.body_bytes += len(body)
            return body

        return read

    async def _robots_txt(self, url: URL) -> bytes:
        self._stats.robots_requests += 1
        return await self._retrying(lambda: self._follow(url, ROBOTS, read_robots, None))

    async def _retrying(self, action: Callable[[], Awaitable[R]]) -> R:
        for attempt in range(self._config.retries + 1):
            try:
                return await action()
            except TransientError as error:
                if attempt == self._config.retries:
                    raise error.rejected from error
            self._stats.retries += 1
            longest = min(self._config.backoff_s * 2**attempt, _MAX_BACKOFF_S)
            await asyncio.sleep(self._jitter.uniform(0, longest))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(
        self, url: URL, number: int, read: Reader[R], check: Callable[[URL], Awaitable[None]] | None
    ) -> R:
        """One attempt: all hops, each of them checked and in its host's turn."""
        loop = asyncio.get_running_loop()
        left = self._config.total_timeout_s
        for _ in range(self._config.max_redirects + 1):
            self._check_literal(url)
            if check is not None and not self._robots.passes(url):
                await check(url)
            host = url.raw_host or ""
            await self.turns.begin(number, host)
            begun = loop.time()
            try:
                self._check_closed(host)
                outcome = await self._request(url, left, read)
            except (aiohttp.ClientError, OSError, UnicodeError) as error:
                raise _verdict(error) from error
            finally:
                self.turns.end(host)
            if not isinstance(outcome, URL):
                return outcome
            url = outcome
            left -= loop.time() - begun
            if left <= 0:
                raise TransientError(Reason.TIMEOUT, "no answer in time")
        raise RejectedInput(Reason.TOO_MANY_REDIRECTS, f"over {self._config.max_redirects}")

    async def _request(self, url: URL, left: float, read: Reader[R]) -> R | URL:
        """One request: what was read of the answer, or where it redirects to."""
        self._stats.requests += 1
        timeout = aiohttp.ClientTimeout(
            total=left, connect=self._config.connect_timeout_s, sock_read=self._config.read_timeout_s
        )
        async with self._session.get(url, allow_redirects=False, timeout=timeout) as response:
            if response.status == 200:
                return await read(response)
            if response.status in _REDIRECTS:
                return redirect_target(url, response.headers.get("Location"))
            rejected, transient = check_status(response.status)
            pause = retry_after_s(response) if transient else 0.0
        if pause > self._config.max_retry_after_s:
            self._memory.closed.put(url.raw_host or "", rejected, pause)
            raise rejected
        if pause:
            self.turns.pause(url.raw_host or "", pause)
        raise TransientError(rejected.reason, rejected.detail) if transient else rejected

    def _check_literal(self, url: URL) -> None:
        """Hosts that are addresses are dialled without being resolved, so they are checked here."""
        address = None if self._config.allow_private_hosts else literal_address(url)
        if address is not None:
            try:
                check_address(address)
            except BlockedAddressError as error:
                raise RejectedInput(Reason.BLOCKED_ADDRESS, str(error)) from error

    def _check_closed(self, host: str) -> None:
        """A host that asked for a long pause is not asked again before it is over."""
        rejected = self._memory.closed.get(host)
        if rejected is not None:
            raise RejectedInput(rejected.reason, rejected.detail)


def _verdict(error: Exception) -> Exception:
    """What an exception of the HTTP client means: final, transient, or none of the host's doing."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = getattr(cause, "errno", None)
    if number in LOCAL_ERRORS:
        return OSError(number, os.strerror(number))
    if isinstance(cause, BlockedAddressError):
        return RejectedInput(Reason.BLOCKED_ADDRESS, str(cause))
    if isinstance(cause, socket.gaierror):
        detail = cause.strerror or "no address"
        return (
            TransientError(Reason.DNS_TEMPORARY, detail) if is_temporary(cause) else RejectedInput(Reason.DNS, detail)
        )
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        cause = getattr(error, "certificate_error", cause)
        detail = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or "handshake failed"
        return RejectedInput(Reason.TLS, str(detail)[:200])
    if isinstance(error, TimeoutError):
        return TransientError(Reason.TIMEOUT, "no answer in time")
    if isinstance(error, aiohttp.ClientPayloadError):
        return TransientError(Reason.TRUNCATED, "the body ended early")
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return RejectedInput(Reason.BAD_URL, type(error).__name__)
    if isinstance(error, aiohttp.ClientResponseError):
        return TransientError(Reason.CONNECT, "the answer is not HTTP")
    return TransientError(Reason.CONNECT, os.strerror(number) if number else "connection lost")
