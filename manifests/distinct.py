"""The different hashes among very many, how often each comes and where first; sorted, within a memory limit.

A stream of hashes is cut to runs of different ones that fit, and those are merged by their leading bits. Results lie in
files of the spill folder and are mapped, 24 bytes a different hash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES = 72
"""A hash costs while it is sorted with its place and count."""
_MIN_ROWS = 1 << 12
_TRIPLE = np.dtype([("hash", "<u8"), ("first", "<i8"), ("count", "<i8")])


@dataclass(frozen=True, slots=True, eq=False)
class Distinct:
    """Different hashes, ascending.

    Attributes:
        hashes: `(n,)` uint64.
        first: `(n,)` int64, place of the first of each in the stream.
        counts: `(n,)` int64, how many of each there are.
    """

    hashes: NDArray[np.uint64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]


def distinct(stream: Iterable[NDArray[np.uint64]], *, memory: int, spill: Path) -> Distinct:
    """
    Args:
        stream: hashes in pieces, in order.
        memory: bytes.
        spill: folder for intermediate files and the result.
    """
    limit = max(_MIN_ROWS, memory // _BYTES)
    parts: _Parts | None = None
    pending: list[NDArray[np.uint64]] = []
    start = waiting = 0
    for piece in stream:
        for low in range(0, len(piece), limit):
            pending.append(piece[low : low + limit])
            waiting += len(pending[-1])
            if waiting >= limit:
                run = _run(pending, start)
                parts = parts or _Parts(spill, run["hash"], limit // 2)
                parts.add(run)
                start, waiting, pending = start + waiting, 0, []
    last = [_run(pending, start)] if waiting else []
    if parts is None:
        return _stored(last, spill)
    for run in last:
        parts.add(run)
    return _stored(parts.merged(), spill)


def _run(pieces: list[NDArray[np.uint64]], start: int) -> NDArray[np.void]:
    hashes = np.concatenate(pieces)
    return _merge(hashes, np.arange(start, start + len(hashes)), np.ones(len(hashes), np.int64))


def _merge(hashes: NDArray[np.uint64], first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.void]:
    """Triples of the different hashes, ascending."""
    order = np.argsort(hashes)
    sorted_hashes = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_hashes[1:] != sorted_hashes[:-1]]))
    triples = np.empty(len(starts), _TRIPLE)
    triples["hash"] = sorted_hashes[starts]
    triples["first"] = np.minimum.reduceat(first[order], starts)
    triples["count"] = np.add.reduceat(counts[order], starts)
    return triples


class _Parts:
    """Files of triples by ranges of hashes, about equal in size if the first run is like the others."""

    def __init__(self, folder: Path, sample: NDArray[np.uint64], rows: int) -> None:
        self._folder, self._rows = folder, rows
        # So many that a part of a stream of 4,096 runs would fit; small files cost little.
        places = np.linspace(0, len(sample), min(len(sample), 4096), endpoint=False).astype(np.int64)
        self._bounds = np.unique(sample[places])[1:]
        self._paths = [folder / f"part-{number:04d}" for number in range(len(self._bounds) + 1)]

    def add(self, run: NDArray[np.void]) -> None:
        cuts = np.searchsorted(run["hash"], self._bounds)
        for path, piece in zip(self._paths, np.split(run, cuts), strict=True):
            if len(piece):
                with path.open("ab") as file:
                    piece.tofile(file)

    def merged(self) -> Iterable[NDArray[np.void]]:
        """Merges parts together as many as fit, in order; deletes them."""
        group: list[NDArray[np.void]] = []
        size = 0
        for path in self._paths:
            if not path.exists():
                continue
            piece = np.fromfile(path, _TRIPLE)
            path.unlink()
            if group and size + len(piece) > self._rows:
                yield self._merged(group)
                group, size = [], 0
            group.append(piece)
            size += len(piece)
        if group:
            yield self._merged(group)

    @staticmethod
    def _merged(group: list[NDArray[np.void]]) -> NDArray[np.void]:
        triples = np.concatenate(group)
        return _merge(triples["hash"], triples["first"], triples["count"])


def _stored(pieces: Iterable[NDArray[np.void]], spill: Path) -> Distinct:
    names = {"hash": spill / "distinct.u64", "first": spill / "first.i64", "count": spill / "count.i64"}
    files = {name: path.open("wb") for name, path in names.items()}
    try:
        for triples in pieces:
            for name, file in files.items():
                np.ascontiguousarray(triples[name]).tofile(file)
    finally:
        for file in files.values():
            file.close()
    return Distinct(mapped(names["hash"], "<u8"), mapped(names["first"], "<i8"), mapped(names["count"], "<i8"))


def mapped(path: Path, dtype: str) -> NDArray[Any]:
    """A file of numbers, mapped read-only; an empty one too."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
