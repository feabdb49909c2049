"""Lines of LVM's token files: `{"tokens": "BASE64"}`, one visual sequence a line.

BASE64 (RFC 4648, section 4, with padding) is of int32 little-endian, 256·n codes below 8192 of n images, without BOS
and EOS, and nothing else is said: 16 images make a line of 21,863 bytes (release of LVM, arXiv 2312.00785).
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from uvd.manifests.tokens import CODEBOOK_SIZE, TOKENS_PER_IMAGE
from uvd.sequences.reject import Reason, RejectedInput

MAX_LINE_BYTES = 1 << 20
"""767 images; a longer line is refused before it is read."""
SKIP_BYTES = 1 << 16
_ID_BYTES = 4


def encode_line(codes: NDArray[np.uint16]) -> bytes:
    """The line, with its line feed, of one sequence's codes, `(n, 256)` uint16 below 8192."""
    text = binascii.b2a_base64(codes.astype("<i4").tobytes(), newline=False)
    return b'{"tokens": "' + text + b'"}\n'


def decode_line(line: bytes) -> NDArray[np.uint16]:
    """The codes of a line, with or without its line feed, `(n, 256)` uint16.

    Raises:
        RejectedInput: `bad_tokens`, with what is wrong.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else "not JSON") from error
    if not isinstance(content, dict) or content.keys() != {"tokens"} or not isinstance(content["tokens"], str):
        raise _bad('not an object with the one key "tokens" and a text')
    data = _decoded(content["tokens"])
    if not data or len(data) % (_ID_BYTES * TOKENS_PER_IMAGE):
        raise _bad(f"{len(data)} bytes are not int32 ids, {TOKENS_PER_IMAGE} an image")
    ids = np.frombuffer(data, "<i4")
    if ids.min() < 0 or ids.max() >= CODEBOOK_SIZE:
        place = int(((ids < 0) | (ids >= CODEBOOK_SIZE)).argmax())
        raise _bad(f"id {int(ids[place])} at place {place} is not a code from 0 to {CODEBOOK_SIZE - 1}")
    return ids.astype(np.uint16).reshape(-1, TOKENS_PER_IMAGE)


def _decoded(text: str) -> bytes:
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise _bad(f"not base64: {error}") from error
    # Bits that belong to no byte must be 0, or two texts would mean the same.
    if binascii.b2a_base64(data, newline=False) != text.encode():
        raise _bad("not base64: bits are left over at its end")
    return data


def _bad(detail: str) -> RejectedInput:
    return RejectedInput(Reason.BAD_TOKENS, detail)


def iter_lines(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes | None]]:
    """(first byte, line without its line feed) of all lines that begin in [start, end); None in place of a long line.

    Neighbouring ranges thus share a file's lines out among them, each to one. Holds one line; reads past `end` at most
    as far as the longest line that is taken.

    Args:
        file: seekable.
    """
    place = _next_line(file, start, end) if start else 0
    file.seek(place)
    while place < end:
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES:
            yield place, line.removesuffix(b"\n")
            place += len(line)
        else:
            yield place, None
            place = _next_line(file, place + len(line), end)
            file.seek(place)


def _next_line(file: BinaryIO, start: int, end: int) -> int:
    """Where the first line at or after `start` begins; `end` if that is not before `end`."""
    file.seek(start - 1)
    place = start - 1
    while place < end and (block := file.read(SKIP_BYTES)):
        found = block.find(b"\n")
        if found >= 0:
            return min(place + found + 1, end)
        place += len(block)
    return end
