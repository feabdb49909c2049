"""Looking up hosts: in threads of their own, remembered (failures too), and refused if any address is not global.

The connector dials exactly the addresses that are returned here, so what was checked is what is dialled; the name stays
in the Host header and in TLS. A lookup that hangs keeps its thread until the C library gives up, not its caller.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult

from uvd.sources.addresses import check_address
from uvd.sources.fetch_config import FetchConfig, FetchStats
from uvd.sources.timed_cache import TimedCache

_TEMPORARY_TTL_S = 1.0
_NO_SUCH_HOST = frozenset(
    getattr(socket, name, socket.EAI_NONAME) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY", "EAI_FAIL")
)
LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Error numbers of this machine's own troubles, which say nothing about any host."""
_FLAGS = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a host, or the error code of `getaddrinfo`."""

    addresses: tuple[tuple[socket.AddressFamily, str], ...] = ()
    error: int = 0


def is_temporary(error: socket.gaierror) -> bool:
    """Whether a lookup failed for a cause that may pass: no answer, a name server in trouble."""
    return error.errno not in _NO_SUCH_HOST


class CheckedResolver(AbstractResolver):
    """Resolves for one session; cache and threads are shared with others."""

    def __init__(
        self, config: FetchConfig, cache: TimedCache[Answer], threads: ThreadPoolExecutor, stats: FetchStats
    ) -> None:
        self._config = config
        self._cache = cache
        self._threads = threads
        self._stats = stats
        self._running: dict[str, asyncio.Task[Answer]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of a host.

        Raises:
            BlockedAddressError: if any of them is not global, unless private hosts are allowed.
            socket.gaierror: if there are none, or no answer came in time (EAI_AGAIN).
        """
        answer = self._cache.get(host)
        if answer is None:
            answer = await self._lookup(host)
        else:
            self._stats.dns_cached += 1
        if answer.error:
            raise socket.gaierror(answer.error, "no address" if answer.error in _NO_SUCH_HOST else "no answer")
        if not self._config.allow_private_hosts:
            for _, address in answer.addresses:
                check_address(address)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=_FLAGS)
            for kind, address in answer.addresses
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def _lookup(self, host: str) -> Answer:
        task = self._running.get(host)
        if task is None:
            task = self._running[host] = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda _: self._running.pop(host, None))
        try:
            # One caller that gives up must not end the lookup of the others.
            return await asyncio.wait_for(asyncio.shield(task), self._config.dns_timeout_s)
        except TimeoutError:
            return Answer(error=socket.EAI_AGAIN)

    async def _ask(self, host: str) -> Answer:
        self._stats.dns_lookups += 1
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, _getaddrinfo, host)
        ttl = self._config.dns_ttl_s
        if answer.error:
            ttl = self._config.dns_negative_ttl_s if answer.error in _NO_SUCH_HOST else _TEMPORARY_TTL_S
        self._cache.put(host, answer, ttl)
        return answer

    async def close(self) -> None:
        for task in list(self._running.values()):
            task.cancel()


def _getaddrinfo(host: str) -> Answer:
    try:
        found = socket.getaddrinfo(host, None, 0, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        return Answer(error=error.errno or socket.EAI_AGAIN)
    except UnicodeError:
        return Answer(error=socket.EAI_NONAME)
    except OSError as error:
        if error.errno in LOCAL_ERRORS:
            raise
        return Answer(error=socket.EAI_AGAIN)
    addresses = tuple(dict.fromkeys((socket.AddressFamily(family), str(place[0])) for family, _, _, _, place in found))
    return Answer(addresses) if addresses else Answer(error=socket.EAI_NONAME)
