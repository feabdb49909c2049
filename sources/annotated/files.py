"""`files`: photos and maps that lie as files, matched by their names; and the published data sets of this form.

Which file belongs to which is what the patterns capture in their paths (`sources/name_patterns.py`), never their order.
A photo with some of its maps is used with these; a photo without any, a map without photo, and the second of two files
with one key are refused by name. Planning lists each folder once a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uvd.sequences import Reason
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.drawn_maps import DrawnMaps
from uvd.sources.annotated.presets import PRESETS, Preset
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.drawing import open_image
from uvd.sources.name_patterns import FoundFile, Key, NamePattern, PatternError

_ROLE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SPLIT = re.compile(r"(?:(train)(?:ing|_extra)?|(val)(?:id|idation)?|(test)(?:ing)?)[-_]?\d*")


class FilesReader(Reader):
    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        self._preset = _chosen(config)
        self._maps = DrawnMaps(config)

    def items(self) -> Iterator[Item]:
        root = self.config.input
        if not root.is_dir():
            raise SourceError(f"input {root} is not a folder")
        patterns = self._patterns()
        found = {role: _Found(_listed(root, pattern)) for role, pattern in patterns.items() if role}
        for role, maps in found.items():
            if not maps.by_key and not self._preset.maps[role].optional:
                raise SourceError(f"no files for {role} below {root}: none matches {patterns[role].text}")
        # A pattern such as *.png for photos may fit the maps beside them too.
        mapped = {file.path for maps in found.values() for file in maps.all}
        photos = _Found(file for file in _listed(root, patterns[""]) if file.path not in mapped)
        if not photos.by_key:
            raise SourceError(f"no photos below {root}: none matches {patterns[''].text}")
        for photo in photos.all:
            yield self._item(photo, photos, found)
        yield from _without_photo(photos, found)

    def _patterns(self) -> dict[str, NamePattern]:
        """Role → pattern; "" is the photos'.

        Raises:
            SourceError: for patterns that cannot be used together, and roles that are no names.
        """
        preset = self._preset
        try:
            patterns = {"": NamePattern(preset.images)}
            patterns |= {role: NamePattern(form.files) for role, form in preset.maps.items()}
        except PatternError as error:
            raise SourceError(str(error)) from error
        for role, pattern in patterns.items():
            if role and (role == "image" or not _ROLE.fullmatch(role)):
                raise SourceError(f"maps: {role!r} is no role: a-z, 0-9 and _, and not image, which is the photo's")
            if pattern.captures != patterns[""].captures:
                raise SourceError(
                    f"maps.{role}.files {pattern.text!r} captures {pattern.captures} parts of a path, "
                    f"images {preset.images!r} {patterns[''].captures}: they must be the same"
                )
        return patterns

    def _item(self, photo: FoundFile, photos: _Found, found: dict[str, _Found]) -> Item:
        first = photos.by_key.get(photo.key)
        if not _is_text(photo.path):
            return _refuse_name(photo)
        if first is not photo:
            return refused(
                photo.path, Reason.NO_ANNOTATION, f"another photo has this name: {first.path if first else ''}"
            )
        maps = [(role, maps.by_key[photo.key]) for role, maps in found.items() if photo.key in maps.by_key]
        if not maps:
            return refused(photo.path, Reason.NO_ANNOTATION, f"no file of this name for {' or '.join(found)}")
        item: dict[str, Any] = {"origin": photo.path, "bytes": photo.bytes}
        item["maps"] = [[role, file.path, file.bytes] for role, file in maps]
        split = _split_of(file.path for file in (photo, *(file for _, file in maps))) if self._preset.splits else ""
        return {**item, "split": split} if split else item

    def open(self, item: Item) -> AnnotatedImage:
        pixels, size = open_image(self.config, item["origin"])
        annotations = []
        for role, path, _ in item["maps"]:
            form = self._preset.maps[role]
            for group, draw in self._maps.open(path, form, pixels):
                annotations.append(Annotation(role, path, draw, drawn=form.form != "picture", group=group))
        return AnnotatedImage(pixels, size, item["origin"], tuple(annotations))

    def close(self) -> None:
        self._maps.close()


def _chosen(config: AnnotatedConfig) -> Preset:
    """What the kind stands for, with the roles that are wanted."""
    preset = PRESETS.get(config.kind) or Preset(config.images, config.maps, config.folder_splits)
    wanted = config.roles or tuple(preset.maps)
    return replace(preset, maps={role: preset.maps[role] for role in wanted})


@dataclass(frozen=True, slots=True, init=False)
class _Found:
    """The files of one pattern, by path; `by_key` has the first of each key."""

    all: list[FoundFile]
    by_key: dict[Key, FoundFile]

    def __init__(self, files: Iterable[FoundFile]) -> None:
        object.__setattr__(self, "all", list(files))
        object.__setattr__(self, "by_key", {})
        for file in self.all:
            if _is_text(file.path):
                self.by_key.setdefault(file.key, file)


def _listed(root: Path, pattern: NamePattern) -> list[FoundFile]:
    try:
        return pattern.files(root)
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be listed: {error.strerror}") from error


def _without_photo(photos: _Found, found: dict[str, _Found]) -> Iterator[Item]:
    """Maps that no photo takes, each once although several roles may list it."""
    items: dict[str, Item] = {}
    taken: set[str] = set()
    for maps in found.values():
        for file in maps.all:
            if not _is_text(file.path):
                items[file.path] = _refuse_name(file)
            elif maps.by_key[file.key] is not file:
                detail = f"another map has this name: {maps.by_key[file.key].path}"
                items.setdefault(file.path, refused(file.path, Reason.BAD_ANNOTATION, detail))
            elif file.key not in photos.by_key:
                items.setdefault(file.path, refused(file.path, Reason.MISSING, "no photo of this name"))
            else:
                taken.add(file.path)
    for path in sorted(items.keys() - taken):
        yield items[path]


def _is_text(path: str) -> bool:
    """Whether a path can be written down: file names on disk may be any bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _refuse_name(file: FoundFile) -> Item:
    return refused(ascii(file.path)[1:-1], Reason.UNREADABLE, "the name is not UTF-8")


def _split_of(paths: Iterable[str]) -> str:
    """`train`, `val` or `test` if a folder is named so, such as `train2017` or `validation`; else ""."""
    for path in paths:
        for folder in path.split("/")[:-1]:
            match = _SPLIT.fullmatch(folder)
            if match:
                return next(split for split in match.groups() if split)
    return ""
