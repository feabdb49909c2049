"""A web server for benchmarks, in a process of its own: real photos under many addresses, some missing, some slow.

Answers are a function of the photo's number alone: a base latency, one in 33 a 404, and one host in 16 that takes a
second and a half. Hosts are loopback addresses (127.0.1.1 to 127.0.1.16), so that limits per host mean something.

    python -m uvd.benchmarks.photo_host FOLDER PORT [LATENCY_S [BYTES_A_SECOND]]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

HOSTS = tuple(f"127.0.1.{number}" for number in range(1, 17))
SLOW_HOST = HOSTS[-1]
SLOW_ONE_IN = 200
"""One URL in so many lies on the slow host."""
LATENCY_S, SLOW_S = 0.02, 1.5
MISSING_ONE_IN = 33
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def missing(number: int) -> bool:
    return number % MISSING_ONE_IN == 7


def host_of(number: int) -> str:
    return SLOW_HOST if number % SLOW_ONE_IN == 11 else HOSTS[number % (len(HOSTS) - 1)]


def url(number: int, port: int) -> str:
    return f"http://{host_of(number)}:{port}/photos/{number:08d}.jpg"


class Link:
    """What all answers go through, one after another: so many bytes a second."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s, self._free = bytes_s, 0.0

    async def carry(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free = max(now, self._free) + size / self._bytes_s
        await asyncio.sleep(self._free - now)


class PhotoHost(asyncio.Protocol):
    """Enough of HTTP/1.1 for GET with keep-alive; costs about 0.1 ms a request."""

    def __init__(self, photos: list[bytes], latency_s: float, link: Link | None) -> None:
        self.photos = photos
        self.latency_s, self.link = latency_s, link
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            asyncio.get_running_loop().create_task(self.answer(head))

    async def answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        slow = f"Host: {SLOW_HOST}:".encode() in head
        stem = path.rpartition(b"/")[2].removesuffix(b".jpg")
        if not stem.isdigit() or missing(int(stem)):
            self.transport.write(NOT_FOUND)
            return
        await asyncio.sleep(SLOW_S if slow else self.latency_s)
        photo = self.photos[int(stem) % len(self.photos)]
        if self.link is not None:
            await self.link.carry(len(photo))
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(photo)
        self.transport.write(answer + photo)


async def main(folder: Path, port: int, latency_s: float = LATENCY_S, bytes_s: float | None = None) -> None:
    photos = [file.read_bytes() for file in sorted(folder.iterdir())]
    loop, link = asyncio.get_running_loop(), None if bytes_s is None else Link(bytes_s)
    server = await loop.create_server(lambda: PhotoHost(photos, latency_s, link), HOSTS, port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:])))
