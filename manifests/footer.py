"""The `uvd` JSON of a local manifest, sliced out of its footer without Arrow: a fourth of the time, no thread needed.

A resume or a survey of a large dataset opens every manifest, and needs this one entry of each. Arrow decodes the whole
footer for it: every column's chunk, statistics and the schema twice.

A Parquet file ends with its footer (`FileMetaData`, Thrift compact protocol), its length and `PAR1`. Of a manifest, the
footer's last fields are `key_value_metadata` (5), a list of `uvd` and `ARROW:schema`; `created_by` (6); and
`column_orders` (7). Only a footer that reads so to its last byte is trusted. Of any other file nothing is said, and the
caller asks Arrow, whose answer or error it then is. So is damage in front of these fields, for `uvd verify` to find.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_BYTES = 64 << 10
"""Read from the end of a file, in one go: footers take 4 to 30 kB."""
_MAGIC = b"PAR1"
_STRING = b"\x18"
"""Header of a Thrift field: one further than the last, of type binary."""
_KEY = b"\x18\x03uvd" + _STRING
_LIST = b"\x19\x2c"
"""A list of two structs, one field further than the last."""
_NEXT = b"\x00\x18\x0cARROW:schema" + _STRING
_REST = re.compile(
    rb"\x00\x18.parquet-cpp-arrow version [ -~]{1,60}\x19(?:[\x1c-\xec]|\xfc.)(?:\x1c\x00\x00)+\x00", re.S
)
"""End of the list, who wrote it, the order of each column, end of the footer."""
_MAX_VARINT = 4


def read_footer(path: str | Path) -> bytes | None:
    """The file metadata entry `uvd` of a local Parquet file; None if this cannot tell, and Arrow has to be asked.

    Raises:
        OSError: if the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES))
    finally:
        os.close(descriptor)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _MAGIC or length > len(tail) - 8:
        return None
    return find_entry(tail[len(tail) - 8 - length : -8])


def find_entry(footer: bytes) -> bytes | None:
    """The value of `uvd` in the Thrift bytes of a footer; None unless its end is as uvd's manifests have it."""
    key = footer.find(_KEY)
    # A picture's origin may hold the same bytes, and lie in the statistics of its column.
    if key < len(_LIST) or footer[key - len(_LIST) : key] != _LIST or footer.find(_KEY, key + 1) >= 0:
        return None
    value = _string(footer, key + len(_KEY))
    if value is None or not footer.startswith(_NEXT, value[1]):
        return None
    schema = _string(footer, value[1] + len(_NEXT))
    if schema is None or _REST.fullmatch(footer, schema[1]) is None:
        return None
    # Neither JSON nor base64 has a zero byte, which ends every struct that a made-up length might run over.
    if footer.find(0, schema[0], schema[1]) >= 0 or footer.find(0, *value) >= 0:
        return None
    return footer[slice(*value)]


def _string(data: bytes, position: int) -> tuple[int, int] | None:
    """Start and end of a Thrift string whose length, a varint, is at `position`."""
    length = 0
    for place in range(_MAX_VARINT):
        if position >= len(data):
            return None
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            end = position + length
            return (position, end) if end <= len(data) else None
    return None
