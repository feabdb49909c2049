"""A plan on disk: written once, read as often as needed, in constant memory.

Sources list their inputs once a run, which may cost a walk through folders or a JSON file of a gigabyte; comparing the
plan with what is committed, and feeding what is missing, then read the same lines. Costs about 200 bytes of temporary
disk a work unit of URLs, 60 bytes an input of the other sources, and 10 µs a unit and pass.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

J = TypeVar("J")
_BLOCK = 1 << 20


class PlanFile(Generic[J]):
    """Jobs in the order in which they were planned; each iteration starts anew. A context manager.

    Args:
        records: JSON-able, one a job; all of them are taken at once, so errors of the plan are raised here.
        make: the job of a record, after its way through JSON.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]], make: Callable[[dict[str, Any]], J]) -> None:
        self._make = make
        self._count = 0
        # Without a name, so that nothing is left however the process ends.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        try:
            for record in records:
                self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
                self._count += 1
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PlanFile[J]:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[J]:
        position, rest = 0, b""
        while block := os.pread(self._file.fileno(), _BLOCK, position):
            position += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield self._make(json.loads(line))
