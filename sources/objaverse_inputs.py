"""Which objects an input holds: a folder or one file, a download of the `objaverse` package, or what a list names.

The package keeps `hf-objaverse-v1/glbs/000-023/UID.glb`, and `object-paths.json.gz` beside `glbs` for all uids there
are. Such a file is known by its uid, any other by its path, so its split does not change with the folder that is given.
Planning walks the folder once, and reads names and sizes only.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from uvd.renderers.multiview_files import ARCHIVE, FORMATS
from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.objaverse_lists import SPLITS, ListRow, is_list, read_json, read_list, uid_of_identifier
from uvd.sources.url_columns import as_text

SUFFIXES = (*FORMATS, ARCHIVE)
LAYOUT_FOLDER = "hf-objaverse-v1"
PATHS_FILES = ("object-paths.json.gz", "object-paths.json")

_LAYOUT_FILE = re.compile(r"(?:^|/)[0-9]{3}-[0-9]{3}/([0-9a-f]{32})\.glb$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def identity_of(item: Item) -> str:
    """What an object is known by: the uid that a list or Objaverse's layout gives it, else its path."""
    match = _LAYOUT_FILE.search(item["origin"])
    return item.get("uid") or (match[1] if match else item["origin"])


class ObjectInputs:
    """The objects of an input, in a deterministic order.

    Args:
        place: a folder, searched with everything below it, or one object or list.
        object_list: takes what it names, with paths relative to `place`.
        patterns: globs on paths of files that are searched for.
    """

    def __init__(self, place: Path, object_list: Path | None, patterns: tuple[str, ...]) -> None:
        self._place, self._patterns = place, patterns
        self.object_list = place if object_list is None and place.is_file() and is_list(place) else object_list
        self.root = place if place.is_dir() else place.parent
        self._paths: ObjectPaths | None = None

    def items(self) -> Iterator[Item]:
        """`origin` (path within the root) and `bytes`; of listed objects also `uid`, `sha256` and `split`, if given.

        Raises:
            SourceError: if there is no object at all, or the list cannot be read.
        """
        if not self._place.exists():
            raise SourceError(f"objaverse: no file or folder {self._place}")
        yield from self._found() if self.object_list is None else self._listed(self.object_list)

    def _found(self) -> Iterator[Item]:
        if self._place.is_file():
            origins = [self._place.name] if self._place.suffix.lower() in SUFFIXES else []
        else:
            origins = [
                path for path in object_files(self.root) if any(fnmatch(path, pattern) for pattern in self._patterns)
            ]
        if not origins:
            raise SourceError(
                f"objaverse: no file of {', '.join(SUFFIXES)} in {self._place} matches {list(self._patterns)}"
            )
        for origin in origins:
            if origin != as_text(origin):
                yield refused(ascii(origin)[1:-1], Reason.UNREADABLE, "the name is not UTF-8")
                continue
            try:
                yield {"origin": origin, "bytes": (self.root / origin).stat().st_size}
            except OSError as error:
                yield refused(origin, Reason.MISSING, str(error.strerror))

    def _listed(self, path: Path) -> Iterator[Item]:
        seen: set[str] = set()
        usable, refusal = 0, "it is empty"
        for number, row in enumerate(read_list(path), start=1):
            name = as_text(row.get("path")) or as_text(row.get("uid")) or as_text(row.get("fileIdentifier"))
            try:
                item = self._item(row)
                # Also the same object in another file, which might be said to belong to another split.
                if {item["origin"], identity_of(item)} & seen:
                    raise RejectedInput(Reason.DUPLICATE, "listed before")
                seen |= {item["origin"], identity_of(item)}
                usable += 1
            except RejectedInput as rejected:
                item = refused(name or f"{path.name} row {number}", rejected.reason, rejected.detail)
                refusal = f"first {item['origin']}: {rejected.detail}" if number == 1 else refusal
            yield item
        if not usable:
            raise SourceError(f"objaverse: {path} names no object that is in {self.root}; {refusal}")

    def _item(self, row: ListRow) -> Item:
        """
        Raises:
            RejectedInput: for a row that says too little or nonsense, and an object that is not there.
        """
        values = {name: as_text(value) for name, value in row.items() if value not in (None, "")}
        if None in values.values():
            raise RejectedInput(Reason.BAD_ANNOTATION, "a value that is no text")
        uid, path = values.get("uid"), values.get("path")
        if uid is None and (identifier := values.get("fileIdentifier")) is not None:
            uid = uid_of_identifier(identifier)
        if path is not None:
            origin = self._within_root(path)
        elif uid is not None:
            self._paths = self._paths or ObjectPaths(self.root)
            origin = self._paths.origin(uid)
        else:
            raise RejectedInput(Reason.BAD_ANNOTATION, "a row without uid and path")
        try:
            size = (self.root / origin).stat().st_size
        except (OSError, ValueError) as error:
            raise RejectedInput(Reason.MISSING, f"no file {origin}") from error
        item = {"origin": origin, "bytes": size}
        if uid is not None:
            item["uid"] = uid
        if (sha256 := (values.get("sha256") or "").lower()) != "":
            if not _SHA256.fullmatch(sha256):
                raise RejectedInput(Reason.HASH_MISMATCH, f"{sha256[:80]!r} is no sha256")
            item["sha256"] = sha256
        if (split := values.get("split")) is not None:
            if split not in SPLITS:
                raise RejectedInput(Reason.BAD_ANNOTATION, f"split {split[:80]!r} is none of {', '.join(SPLITS)}")
            item["split"] = SPLITS[split]
        return item

    def _within_root(self, path: str) -> str:
        """A listed path as one below the root."""
        origin = os.path.relpath(os.path.normpath(self.root / path), self.root) if "\0" not in path else ".."
        if origin.split("/")[0] in ("..", "."):
            raise RejectedInput(Reason.EXTERNAL_REFERENCE, f"{path[:200]!r} is not below {self.root.name}")
        return origin


class ObjectPaths:
    """Where the object of a uid lies: as Objaverse's own table says, else the file of this name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix, self._table = _object_paths(root)
        self._by_stem: dict[str, list[str]] | None = None

    def origin(self, uid: str) -> str:
        """
        Raises:
            RejectedInput: `MISSING`, or `BAD_ANNOTATION` if several files have this name.
        """
        path = self._table.get(uid)
        if isinstance(path, str) and path.startswith("glbs/") and _LAYOUT_FILE.search(path):
            return self._prefix + path.removeprefix("glbs/")
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for file in object_files(self._root):
                self._by_stem[Path(file).stem].append(file)
        found = self._by_stem.get(uid, [])
        if len(found) > 1:
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{len(found)} files of this name: {', '.join(found)}"[:300])
        if not found:
            raise RejectedInput(Reason.MISSING, "no file of this name")
        return found[0]


def object_files(root: Path) -> list[str]:
    """Paths of all object files below `root`, with `/`, sorted.

    Raises:
        SourceError: for a folder that cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise SourceError(f"objaverse: {error.filename} cannot be listed: {error.strerror}") from error

    found = []
    for folder, _, files in os.walk(root, onerror=stop):
        place = os.path.relpath(folder, root)
        found += [name if place == "." else f"{place}/{name}" for name in files if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def _object_paths(root: Path) -> tuple[str, dict[str, object]]:
    """Where `glbs/` lies as seen from `root`, and the package's table of uid → path, or an empty one.

    Raises:
        SourceError: for a table that cannot be read.
    """
    places = [(root, "glbs/"), (root / LAYOUT_FOLDER, f"{LAYOUT_FOLDER}/glbs/")]
    if root.name == "glbs":
        places.append((root.parent, ""))
    for folder, prefix in places:
        for name in PATHS_FILES:
            if (folder / name).is_file():
                table = read_json(folder / name)
                if not isinstance(table, dict):
                    raise SourceError(f"{folder / name} is a {type(table).__name__}, not an object of uid: path")
                return prefix, table
    return "", {}
