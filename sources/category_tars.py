"""Images of classes in WebDataset tars: `KEY.jpg` with `KEY.cls`, or `KEY.json` that has a class → items by class.

A class is a whole number or a text: the content of `.cls`, or what JSON has under `label`, `class` or `cls`; `.cls` may
be JSON too, and goes first. Planning reads the headers and the class files of each tar once, 25 to 80 µs a member on
disk, and keeps 50 bytes a sample. Each image is then read by itself, from where it lies in its tar.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.category_classes import Label, label_of, places_of
from uvd.sources.decode import IMAGE_SUFFIXES
from uvd.sources.image_tars import (
    MAX_JSON_BYTES,
    DamagedTarError,
    TarMember,
    list_described,
    read_content,
)
from uvd.sources.input_place import InputFile, InputPlace

KEYS = ("label", "class", "cls")
CLASS_SUFFIXES = (".cls", ".json")
SUFFIXES = tuple(sorted(IMAGE_SUFFIXES))


@dataclass(slots=True)
class _Sample:
    """What listing has found of the sample it is in."""

    key: str
    image: TarMember | None = None
    described: dict[str, bytes | None] = field(default_factory=dict)
    """Suffix → content; None for a file that is too large to be one of a class."""


@dataclass(slots=True)
class _Listed:
    """All usable samples of all tars, a number each in every column; and the others, as items."""

    labels: dict[Label, int] = field(default_factory=dict)
    """Class → its number, in the order of finding."""
    label: array[int] = field(default_factory=lambda: array("i"))
    tar: array[int] = field(default_factory=lambda: array("i"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    suffix: array[int] = field(default_factory=lambda: array("i"))
    refused: list[Item] = field(default_factory=list)

    def add(self, label: Label, tar: int, image: TarMember) -> None:
        self.label.append(self.labels.setdefault(label, len(self.labels)))
        self.tar.append(tar)
        self.offset.append(image.content)
        self.size.append(image.size)
        self.suffix.append(SUFFIXES.index(image.suffix))


class CategoryTars:
    """The tars of a place, as a source of items and of their images."""

    def __init__(self, place: InputPlace) -> None:
        self._place = place
        self._unchanged: set[str] = set()

    def items(self, files: list[InputFile]) -> Iterator[Item]:
        """Items class by class, those of one class in the order of the tars; then what is refused.

        Raises:
            SourceError: if no sample has a class and an image.
        """
        listed = _Listed()
        for number, file in enumerate(files):
            self._list(number, file, listed)
        if not listed.label:
            raise SourceError(
                f"no tar at {self._place.uri} holds an image with a class: expected KEY.jpg with KEY.cls, or with "
                f"KEY.json that has {', '.join(KEYS)}. For folders, one a class, set format: folders"
            )
        places = places_of(listed.labels)
        of_label = np.array([places[label] for label in listed.labels])
        classes = of_label[np.array(listed.label)]
        order = np.argsort(classes, kind="stable")
        first = np.searchsorted(classes[order], np.arange(len(of_label)))
        for rank, row in enumerate(order.tolist()):
            place = int(classes[row])
            file = files[listed.tar[row]]
            yield {
                "origin": f"{place:04d}/{rank - int(first[place]):06d}{SUFFIXES[listed.suffix[row]]}",
                "tar": file.name,
                "tar_bytes": file.bytes,
                "offset": listed.offset[row],
                "bytes": listed.size[row],
            }
        yield from listed.refused

    def _list(self, number: int, file: InputFile, listed: _Listed) -> None:
        samples = -1
        try:
            for samples, sample in enumerate(self._samples(file)):
                origin = f"tar {number:05d} sample {samples:06d}"
                if sample.image is None:
                    listed.refused.append(refused(origin, Reason.MISSING, "the sample has no image"))
                    continue
                try:
                    listed.add(_label(sample), number, sample.image)
                except RejectedInput as rejected:
                    listed.refused.append(refused(origin, rejected.reason, rejected.detail))
        except DamagedTarError as error:
            detail = f"the rest of the tar, after {samples + 1} samples: {error}"
            listed.refused.append(refused(f"tar {number:05d}", Reason.UNREADABLE, detail))

    def _samples(self, file: InputFile) -> Iterator[_Sample]:
        """Runs of members with one key; also the one in which damage begins, if it has an image."""
        sample: _Sample | None = None
        try:
            for member, content in list_described(self._place, file, CLASS_SUFFIXES, MAX_JSON_BYTES):
                if sample is None or member.key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(member.key)
                if member.suffix in IMAGE_SUFFIXES and sample.image is None:
                    sample.image = member
                elif member.suffix in CLASS_SUFFIXES:
                    whole = member.size <= MAX_JSON_BYTES
                    sample.described.setdefault(member.suffix, content if whole else None)
        except DamagedTarError:
            if sample is not None:
                yield sample
            raise
        if sample is not None:
            yield sample

    def read(self, item: Item, max_bytes: int) -> bytes:
        """The image of an item.

        Raises:
            RejectedInput: it is larger than `max_bytes`.
            SourceError: its tar is gone or has another size than when it was planned.
            OSError: disk or network failed.
        """
        if item["bytes"] > max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{item['bytes']} bytes, over {max_bytes}")
        file = InputFile(item["tar"], item["tar_bytes"])
        if file.name not in self._unchanged:
            self._place.check_unchanged(file)
            self._unchanged.add(file.name)
        return read_content(self._place, file, item["offset"], item["bytes"])


def _label(sample: _Sample) -> Label:
    """
    Raises:
        RejectedInput: the sample has no class, or none that can be read.
    """
    described = sample.described
    if ".cls" in described:
        return _class_file(described[".cls"])
    if ".json" in described:
        value = _json(described[".json"], "KEY.json")
        found = _described_class(value) if isinstance(value, dict) else None
        if found is not None:
            return label_of(found)
    raise RejectedInput(Reason.NO_ANNOTATION, f"no KEY.cls, and no KEY.json with {', '.join(KEYS)}")


def _class_file(data: bytes | None) -> Label:
    """The class that `.cls` says: a text, or JSON."""
    if data is None:
        raise RejectedInput(Reason.BAD_ANNOTATION, "KEY.cls is too large to be a class")
    if data.lstrip()[:1] in (b"{", b'"'):
        value = _json(data, "KEY.cls")
        return label_of(_described_class(value) if isinstance(value, dict) else value)
    try:
        return label_of(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, "KEY.cls is not text") from error


def _described_class(value: dict[str, Any]) -> Any:
    return next((value[key] for key in KEYS if value.get(key) is not None), None)


def _json(data: bytes | None, name: str) -> Any:
    if data is None:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{name} is over {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, f"{name} is not JSON") from error
