"""Reading answers of servers that may be wrong, slow or hostile: status, `Retry-After`, encodings, bodies.

A body is read with a cap, into memory that was asked for first, and is given up when it trickles.
"""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import aiohttp

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.fetch_config import FetchConfig
from uvd.sources.robots import MAX_ROBOTS_BYTES

_COMPRESSED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_FINAL_5XX = frozenset({501, 505})
"""Not implemented, HTTP version not supported."""


def check_status(status: int) -> tuple[RejectedInput, bool]:
    """What a status other than 200 and redirects means, and whether it may pass."""
    if status == 404:
        return RejectedInput(Reason.HTTP_404, "404"), False
    if status == 408:
        return RejectedInput(Reason.TIMEOUT, "408"), True
    if status == 429:
        return RejectedInput(Reason.HTTP_429, "429"), True
    if status >= 500:
        return RejectedInput(Reason.HTTP_5XX, str(status)), status not in _FINAL_5XX
    return RejectedInput(Reason.HTTP_4XX if status >= 400 else Reason.HTTP_OTHER, str(status)), False


def retry_after_s(response: aiohttp.ClientResponse) -> float:
    """Seconds of `Retry-After`, given as such or as a date (RFC 9110, 10.2.3); 0 without a valid one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def check_encoding(response: aiohttp.ClientResponse) -> None:
    """Refuses compressed bodies: none was asked for, and none is ever inflated.

    Raises:
        RejectedInput: with `not_image`.
    """
    if "Content-Encoding" not in response.headers:
        return
    codings = {coding.strip().lower() for coding in response.headers.get("Content-Encoding", "").split(",")}
    if codings & _COMPRESSED:
        raise RejectedInput(Reason.NOT_IMAGE, f"Content-Encoding {min(codings & _COMPRESSED)}, which was not asked for")


async def read_body(response: aiohttp.ClientResponse, config: FetchConfig, hold: Callable[[int], None]) -> bytes:
    """The whole body.

    Args:
        hold: called with the size of the body as far as it is known, before so much is read.

    Raises:
        RejectedInput: `too_large`.
        TimeoutError: if it comes more slowly than the config allows.
    """
    limit = config.max_bytes
    announced = response.content_length
    if announced is not None:
        if announced > limit:
            raise RejectedInput(Reason.TOO_LARGE, f"{announced} bytes announced, over {limit}")
        hold(announced)
    now = asyncio.get_running_loop().time
    begun = now()
    blocks: list[bytes] = []
    size = 0
    while block := await response.content.readany():
        size += len(block)
        if size > limit:
            raise RejectedInput(Reason.TOO_LARGE, f"over {limit} bytes")
        if announced is None:
            hold(size)
        blocks.append(block)
        elapsed = now() - begun
        if elapsed > config.read_timeout_s and size < elapsed * config.min_bytes_per_s:
            raise TimeoutError
    if announced is None:
        hold(size)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


async def read_robots(response: aiohttp.ClientResponse) -> bytes:
    """The first 500 KiB of a robots.txt; some servers compress it unasked, so gzip is undone up to that size.

    Raises:
        RejectedInput: `unreadable` if it is compressed in another way, or damaged.
    """
    body = bytearray()
    while len(body) < MAX_ROBOTS_BYTES and (block := await response.content.readany()):
        body += block
    body = body[:MAX_ROBOTS_BYTES]
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in _COMPRESSED:
        return bytes(body)
    try:
        if coding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=31).decompress(bytes(body), MAX_ROBOTS_BYTES)
    except zlib.error as error:
        raise RejectedInput(Reason.UNREADABLE, "damaged gzip") from error
    raise RejectedInput(Reason.UNREADABLE, f"Content-Encoding {coding}")
