"""AVA's lists, `ava_{train,val}_v2.*.csv` (v2.1 or later): a row an action of one person at one second of a film.

`video_id, middle_frame_timestamp, x1, y1, x2, y2, action_id, person_id`, the box in shares of the frame. Rows that
differ only by action are one box. Each row is checked by itself, and a bad one is kept with its line number: it becomes
an input of its own, and the good rows of the same second are used. 840,000 rows take 7 s and 0.3 GB.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from uvd.sources.base import SourceError
from uvd.sources.matching import listed_lines

SPLITS = ("train", "val")
COLUMNS = 8
MAX_CSV_BYTES = 1 << 30
MAX_TIME_S = 86_400 * 7
MAX_PERSON = 2**31 - 1
MAX_VIDEO_ID = 100

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in shares of the frame's width and height."""


@dataclass
class Film:
    """Boxes of one film, by time in milliseconds and person."""

    boxes: dict[int, dict[int, Box]] = field(default_factory=lambda: defaultdict(dict))

    def tracks(self) -> dict[int, int]:
        """Place in the palette of each person: its place among the film's sorted person ids, from 1."""
        people = {person for boxes in self.boxes.values() for person in boxes}
        return {person: place for place, person in enumerate(sorted(people), start=1)}


@dataclass
class BoxList:
    """One CSV file: films by id, bad rows as (line number from 1, what is wrong), and its excluded seconds."""

    path: Path
    split: str
    films: dict[str, Film] = field(default_factory=lambda: defaultdict(Film))
    bad_rows: list[tuple[int, str]] = field(default_factory=list)
    excluded: set[tuple[str, int]] = field(default_factory=set)


class _BadRow(Exception):  # noqa: N818 - a verdict on a row
    pass


def read_lists(root: Path) -> list[BoxList]:
    """All lists of a folder.

    Raises:
        SourceError: if there is none, there are two of one split, one cannot be read, or a film is in both splits.
    """
    lists = [_read(path, split) for split in SPLITS for path in _one(root, f"ava_{split}_v2.*.csv")]
    if not lists:
        raise SourceError(f"no ava_train_v2.*.csv or ava_val_v2.*.csv in {root}")
    both = sorted(set.intersection(*(set(found.films) for found in lists))) if len(lists) > 1 else []
    if both:
        raise SourceError(f"film {both[0]!r} is both in {lists[0].path} and in {lists[1].path}")
    return lists


def _one(root: Path, pattern: str) -> list[Path]:
    paths = sorted(root.glob(pattern))
    if len(paths) > 1:
        raise SourceError(f"{root} holds {' and '.join(path.name for path in paths)}: keep one version")
    return paths


def _read(path: Path, split: str) -> BoxList:
    found = BoxList(path, split)
    for line, row in _rows(path):
        try:
            video, time_ms, box, person = _parse(row)
            boxes = found.films[video].boxes[time_ms] if video in found.films else {}
            if boxes.get(person, box) != box:
                raise _BadRow(f"another box of person {person} at this second than in a row before")
            found.films[video].boxes[time_ms][person] = box
        except _BadRow as bad:
            found.bad_rows.append((line, str(bad)))
    for excluded in _one(path.parent, f"ava_{split}_excluded_timestamps_v2.*.csv"):
        found.excluded = set(_excluded(excluded))
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the rows that are not empty."""
    for line, text in enumerate(listed_lines(path, MAX_CSV_BYTES), start=1):
        if not text.strip():
            continue
        try:
            yield line, next(csv.reader([text]))
        except csv.Error:
            yield line, [text]  # a cell too long, or such: a row of the wrong form, and named as one


def _parse(row: list[str]) -> tuple[str, int, Box, int]:
    if len(row) != COLUMNS:
        raise _BadRow(f"{len(row)} columns, expected {COLUMNS}")
    video, time, *corners, action, person = (cell.strip() for cell in row)
    _check_id(video)
    values = [_number(cell, "box") for cell in corners]
    x1, y1, x2, y2 = values
    if not all(0 <= value <= 1 for value in values):
        raise _BadRow("box outside [0, 1]")
    if x1 >= x2 or y1 >= y2:
        raise _BadRow("box without area: x1 >= x2 or y1 >= y2")
    if action:
        _whole(action, "action_id")
    return video, _milliseconds(time), (x1, y1, x2, y2), _whole(person, "person_id")


def _check_id(video: str) -> None:
    """A film's id becomes a file name: no path, no hidden file."""
    if not video or len(video) > MAX_VIDEO_ID or video.startswith(".") or "/" in video or "\0" in video:
        raise _BadRow("video_id is no name of a file")


def _milliseconds(cell: str) -> int:
    time_s = _number(cell, "timestamp")
    if not 0 <= time_s <= MAX_TIME_S:
        raise _BadRow("timestamp is no second of a film")
    return round(1000 * time_s)


def _number(cell: str, what: str) -> float:
    try:
        value = float(cell)
    except ValueError as error:
        raise _BadRow(f"{what} is not a number") from error
    if not isfinite(value):
        raise _BadRow(f"{what} is not finite")
    return value


def _whole(cell: str, what: str) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) <= 10 and int(cell) <= MAX_PERSON):
        raise _BadRow(f"{what} is not a whole number")
    return int(cell)


def _excluded(path: Path) -> Iterator[tuple[str, int]]:
    for line, row in _rows(path):
        try:
            if len(row) != 2:
                raise _BadRow(f"{len(row)} columns, expected 2")
            yield row[0].strip(), _milliseconds(row[1].strip())
        except _BadRow as bad:
            raise SourceError(f"{path}, line {line}: {bad}") from bad
