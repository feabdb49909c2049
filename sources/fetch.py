"""Fetching images over HTTP: concurrent, in order, polite, and safe against hostile addresses and bodies.

Only http and https; every address that a host resolves to must be global, at each redirect hop, and the checked address
is the one dialled; the body is capped while it streams; compressed bodies are not asked for. Opt-outs in `X-Robots-Tag`
are honoured. Each generator runs its own event loop in a thread and holds a bounded number of finished downloads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from pydantic import BaseModel, ConfigDict, Field
from yarl import URL

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""`none` stands for noindex and nofollow."""
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""All global unicast addresses there are; what lies outside may be translated to IPv4 (64:ff9b::, ::a.b.c.d)."""
MAX_URL_LENGTH = 4096
_READ_BYTES = 1 << 16
_TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})


class FetchConfig(BaseModel):
    """How fast, how long and how much to download."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(32, ge=1, le=1024, json_schema_extra=NOT_DATA)
    """Downloads in flight, and finished ones waiting to be decoded, in one worker."""
    per_host: int = Field(8, ge=1, json_schema_extra=NOT_DATA)
    """Connections to one host from one worker."""
    connect_timeout_s: float = Field(10.0, gt=0, json_schema_extra=NOT_DATA)
    total_timeout_s: float = Field(30.0, gt=0, json_schema_extra=NOT_DATA)
    max_bytes: int = Field(20 << 20, ge=1)
    retries: int = Field(2, ge=0, le=10, json_schema_extra=NOT_DATA)
    """Further attempts after a transient failure, with doubling pauses."""
    backoff_s: float = Field(0.5, ge=0, json_schema_extra=NOT_DATA)
    max_redirects: int = Field(5, ge=0, le=20)
    user_agent: str = Field(
        "uvd/0.1 (dataset builder; set user_agent in the config to a contact URL)", json_schema_extra=NOT_DATA
    )
    honour_opt_outs: bool = True
    """Refuse images whose `X-Robots-Tag` says noai, noimageai, noindex, noimageindex or noml."""
    allow_private_hosts: bool = False
    """Allow loopback and private addresses: for tests and intranets only."""


class BlockedAddressError(OSError):
    """A host resolves to an address that is not global."""


class GlobalResolver(AbstractResolver):
    """Resolves hosts and refuses every answer that holds an address which is not global."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            check_address(result["host"])
        return results

    async def close(self) -> None:
        await self._resolver.close()


def check_address(address: str) -> None:
    """Refuses loopback, private, link-local, metadata, multicast and reserved addresses, IPv4 in IPv6 included.

    Raises:
        BlockedAddressError: with the address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    outside = ip.version == 6 and embedded is None and ip not in GLOBAL_IPV6
    for candidate in (ip, embedded):
        if candidate is not None and (not candidate.is_global or candidate.is_multicast or outside):
            raise BlockedAddressError(f"{address} is not a global address")


def parse_url(text: str) -> URL:
    """Checks a URL before anything is asked of it.

    Raises:
        RejectedInput: not http or https, no host, credentials inside, or too long.
    """
    if len(text) > MAX_URL_LENGTH:
        raise RejectedInput(Reason.BAD_URL, f"{len(text)} characters, over {MAX_URL_LENGTH}")
    try:
        url = URL(text.strip())
        scheme, host, user = url.scheme, url.host, url.user
    except (ValueError, UnicodeError) as error:
        raise RejectedInput(Reason.BAD_URL, str(error)[:200]) from error
    if scheme not in ("http", "https") or not host:
        raise RejectedInput(Reason.BAD_URL, f"scheme {scheme!r}: only http and https with a host are fetched")
    if user is not None or url.password is not None:
        raise RejectedInput(Reason.BAD_URL, "credentials in the URL")
    return url


def _redirect(url: URL, location: str) -> URL:
    try:
        target = str(url.join(URL(location)))
    except (ValueError, UnicodeError) as error:
        raise RejectedInput(Reason.BAD_URL, f"redirect to {location[:100]!r}") from error
    return parse_url(target)


class Fetcher:
    """One HTTP session; `fetch` downloads one URL."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        resolver = ThreadedResolver() if config.allow_private_hosts else GlobalResolver()
        connector = aiohttp.TCPConnector(
            limit=config.concurrency, limit_per_host=config.per_host, resolver=resolver, ttl_dns_cache=300
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=config.total_timeout_s, connect=config.connect_timeout_s),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def fetch(self, text: str) -> bytes:
        """Downloads one URL, trying again after transient failures.

        Raises:
            RejectedInput: with the reason why there is no image.
        """
        url = parse_url(text)
        attempt = 0
        while True:
            try:
                return await self._attempt(url)
            except _TransientError as error:
                if attempt >= self._config.retries:
                    raise error.rejected from error
            await asyncio.sleep(self._config.backoff_s * 2**attempt)
            attempt += 1

    async def _attempt(self, url: URL) -> bytes:
        try:
            return await self._follow(url)
        except RejectedInput:
            raise
        except BlockedAddressError as error:
            raise RejectedInput(Reason.BLOCKED_ADDRESS, str(error)) from error
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.__cause__, BlockedAddressError):
                raise RejectedInput(Reason.BLOCKED_ADDRESS, str(error.__cause__)) from error
            raise RejectedInput(Reason.DNS, str(error)[:200]) from error
        except TimeoutError as error:
            raise _TransientError(RejectedInput(Reason.TIMEOUT, "no answer in time")) from error
        except aiohttp.ClientPayloadError as error:
            raise _TransientError(RejectedInput(Reason.TRUNCATED, str(error)[:200])) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError) as error:
            raise RejectedInput(Reason.BAD_URL, str(error)[:200]) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _TransientError(RejectedInput(Reason.CONNECT, str(error)[:200])) from error

    async def _follow(self, url: URL) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            self._check_literal(url)
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = _redirect(response.url, response.headers.get("Location", ""))
                    continue
                self._check_status(response.status)
                self._check_opt_out(response.headers.getall("X-Robots-Tag", []))
                return await self._body(response)
        raise RejectedInput(Reason.TOO_MANY_REDIRECTS, f"over {self._config.max_redirects}")

    def _check_literal(self, url: URL) -> None:
        """Hosts that are addresses are dialled without being resolved, so they are checked here."""
        if self._config.allow_private_hosts:
            return
        try:
            ipaddress.ip_address((url.host or "").partition("%")[0])
        except ValueError:
            return
        check_address(url.host or "")

    def _check_status(self, status: int) -> None:
        if status == 200:
            return
        if status == 404:
            raise RejectedInput(Reason.HTTP_404, "404")
        reason = Reason.HTTP_5XX if status >= 500 else Reason.HTTP_4XX
        rejected = RejectedInput(reason, str(status))
        raise _TransientError(rejected) if status in _TRANSIENT_STATUS else rejected

    def _check_opt_out(self, tags: list[str]) -> None:
        directives = {part.strip().lower() for tag in tags for part in tag.replace(":", ",").split(",")}
        if self._config.honour_opt_outs and directives & OPT_OUTS:
            raise RejectedInput(Reason.OPTED_OUT_HEADER, ", ".join(sorted(directives & OPT_OUTS)))

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._config.max_bytes
        if (response.content_length or 0) > limit:
            raise RejectedInput(Reason.TOO_LARGE, f"{response.content_length} bytes announced, over {limit}")
        body = bytearray()
        async for block in response.content.iter_chunked(_READ_BYTES):
            body += block
            if len(body) > limit:
                raise RejectedInput(Reason.TOO_LARGE, f"over {limit} bytes")
        return bytes(body)


class _TransientError(Exception):
    """A failure that may pass; carries the verdict for when it does not."""

    def __init__(self, rejected: RejectedInput) -> None:
        super().__init__(str(rejected))
        self.rejected = rejected


def fetch_in_order(urls: Iterable[str], config: FetchConfig) -> Iterator[bytes | RejectedInput]:
    """Downloads URLs concurrently and yields each body, or the verdict on it, in the order of the input.

    At most `config.concurrency` downloads are in flight or waiting, so memory is bounded by that times `max_bytes`.
    """
    with _event_loop() as loop:
        fetcher = asyncio.run_coroutine_threadsafe(_open(config), loop).result()
        window: deque[Future[bytes]] = deque()
        try:
            for url in urls:
                if len(window) >= config.concurrency:
                    yield _outcome(window.popleft())
                window.append(asyncio.run_coroutine_threadsafe(fetcher.fetch(url), loop))
            while window:
                yield _outcome(window.popleft())
        finally:
            for future in window:
                future.cancel()
            asyncio.run_coroutine_threadsafe(fetcher.close(), loop).result()


def _outcome(future: Future[bytes]) -> bytes | RejectedInput:
    try:
        return future.result()
    except RejectedInput as rejected:
        return rejected


async def _open(config: FetchConfig) -> Fetcher:
    return Fetcher(config)


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
