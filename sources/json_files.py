"""JSON files that the user names: read whole, once, when planning.

Python's `json` takes NaN and numbers of any length, so whoever uses the numbers checks them. Memory: the text once, and
what it becomes, about five times as much for lists of numbers.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uvd.sources.base import SourceError


def read_json_object(path: Path, max_bytes: int, what: str) -> dict[str, Any]:
    """Parses a JSON file whose top level is an object.

    Args:
        path: of the file, UTF-8, with or without a byte order mark.
        max_bytes: larger files are refused before they are read.
        what: the file is expected to be, such as `COCO`, for messages.

    Raises:
        SourceError: names the file and what is wrong with it.
    """
    try:
        if path.exists() and not path.is_file():
            raise SourceError(f"annotation file {path} cannot be read: it is no regular file")
        if path.stat().st_size > max_bytes:
            raise SourceError(f"{path} is larger than {max_bytes} bytes")
        # Decoded while it is read: bytes and text of a large file would not both be kept.
        with _no_search_for_cycles():
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SourceError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path} is not {what}: the top level is a {type(content).__name__}, not an object")
    return content


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """JSON has no cycles, and searching millions of new lists for them takes as long as parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
