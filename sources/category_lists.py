"""Images of classes as a list says them: CSV or TSV with columns for path and class, or plain text → items by class.

Plain text is `PATH CLASS` a line, or one class a line: line n is then the class of the image directly in the input
whose name has the number n, as ImageNet's validation set is published. Paths are relative to the input and stay in it;
URLs are not fetched. A bad line is one reject, named by its number. Planning costs 0.1 ms and 0.5 kB a line.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from stat import S_ISLNK, S_ISREG

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.category_classes import Label, label_of, places_of
from uvd.sources.decode import IMAGE_SUFFIXES
from uvd.sources.matching import frame_number

SUFFIXES = (".csv", ".tsv", ".txt")
MAX_LIST_BYTES = 4 << 30
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class ListForm:
    """How the rows of a list are to be read.

    Attributes:
        columns: names of the columns of path and class; CSV and TSV.
        header: names of all columns, for files whose first row is not a header.
    """

    columns: tuple[str, str] = ("path", "class")
    header: tuple[str, ...] = ()


Row = tuple[int, str, str]
"""Line from 1, path, class."""


@dataclass(slots=True)
class _Listed:
    """Images by class, and what is refused."""

    members: defaultdict[Label, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """Class → (path, bytes)."""
    lines: dict[str, tuple[int, Label]] = field(default_factory=dict)
    """Path → where it is listed first, and its class there."""
    refused: list[Item] = field(default_factory=list)

    def add(self, line: int, path: str, label: Label, size: int) -> None:
        if path in self.lines:
            first, before = self.lines[path]
            reason = Reason.DUPLICATE if before == label else Reason.BAD_ANNOTATION
            other = "" if before == label else ", and there it has another class"
            raise RejectedInput(reason, f"line {first} names the same file{other}")
        self.lines[path] = line, label
        self.members[label].append((path, size))


def list_items(root: Path, file: Path, form: ListForm) -> Iterator[Item]:
    """Items class by class, those of one class by path; then what is refused.

    Args:
        root: the folder that paths are relative to.
        file: the list.

    Raises:
        SourceError: if the list cannot be read, names URLs or has no such columns, or none of its images is there.
    """
    if not root.is_dir():
        raise SourceError(f"input {root} is not a folder")
    text = _text(file)
    listed, inside = _Listed(), _Inside(root)
    rows = _text_rows(root, text, listed) if file.suffix.lower() == ".txt" else _table_rows(file, text, form, listed)
    for line, path, name in rows:
        if "://" in path:
            raise SourceError(f"{file}, line {line}: a URL. Lists of classes name files below {root}; fetch them first")
        try:
            listed.add(line, *_checked(inside, path, name))
        except RejectedInput as rejected:
            listed.refused.append(refused(f"line {line}", rejected.reason, rejected.detail))
    if not listed.members:
        raise SourceError(f"{file} lists no image with a class that is below {root}{_first(listed)}")
    for label, place in places_of(listed.members).items():
        for index, (path, size) in enumerate(sorted(listed.members[label])):
            suffix = PurePosixPath(path).suffix.lower()
            origin = f"{place:04d}/{index:06d}{suffix if suffix in IMAGE_SUFFIXES else ''}"
            yield {"origin": origin, "path": path, "bytes": size}
    yield from listed.refused


def _first(listed: _Listed) -> str:
    return f"; {listed.refused[0]['origin']}: {listed.refused[0]['detail']}" if listed.refused else ""


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_LIST_BYTES:
            raise SourceError(f"{file} is larger than {MAX_LIST_BYTES} bytes")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"list {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{file} is not UTF-8 text: {error}") from error


def _table_rows(file: Path, text: str, form: ListForm, listed: _Listed) -> Iterator[Row]:
    """Rows of CSV (RFC 4180), or of TSV, which knows no quoting."""
    delimiter = _DELIMITERS.get(file.suffix.lower())
    if delimiter is None:
        raise SourceError(f"{file} is no list: expected {', '.join(SUFFIXES)}")
    lines = io.StringIO(text, newline="")
    quoted = delimiter == ","
    reader = csv.reader(lines) if quoted else csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    try:
        names = list(form.header) or [cell.strip() for cell in next(reader, [])]
        missing = [name for name in form.columns if names.count(name) != 1]
        if missing:
            raise SourceError(
                f"{file} has no one column {missing[0]!r}: it has {', '.join(map(repr, names))}. Say which with "
                "list_columns; if the first row is no header, name the columns with list_header"
            )
        place_of_path, place_of_class = (names.index(name) for name in form.columns)
        for cells in reader:
            if len(cells) == len(names):
                yield reader.line_num, cells[place_of_path], cells[place_of_class]
            elif cells:
                detail = f"{len(cells)} columns, not {len(names)}"
                listed.refused.append(refused(f"line {reader.line_num}", Reason.UNREADABLE, detail))
    except csv.Error as error:
        raise SourceError(f"{file}, line {reader.line_num}: {error}") from error


def _text_rows(root: Path, text: str, listed: _Listed) -> Iterator[Row]:
    """`PATH CLASS` a line, or one class a line for numbered images, told by the first line that is not empty."""
    # A path may hold blanks, a class may not.
    lines = [line.strip().rsplit(maxsplit=1) for line in text.split("\n")]
    width = next((len(words) for words in lines if words), 0)
    numbered = _numbered(root, listed) if width == 1 else {}
    for number, words in enumerate(lines, start=1):
        if not words:
            continue
        if len(words) != width:
            detail = "a class without path" if width > 1 else "more than a class"
            listed.refused.append(refused(f"line {number}", Reason.UNREADABLE, detail))
        elif width > 1:
            yield number, words[0], words[1]
        elif number in numbered:
            yield number, numbered.pop(number), words[0]
        else:
            listed.refused.append(refused(f"line {number}", Reason.MISSING, f"no image has the number {number}"))
    for number in sorted(numbered):
        listed.refused.append(refused(f"image {number}", Reason.NO_ANNOTATION, f"the list has no class for {number}"))


def _numbered(root: Path, listed: _Listed) -> dict[int, str]:
    """Number → name of the images directly in the input."""
    names = sorted(path.name for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    numbered: dict[int, str] = {}
    for place, name in enumerate(names):
        number = frame_number(name)
        if number is None or number in numbered:
            detail = "its name has no number" if number is None else f"another image has the number {number}"
            listed.refused.append(refused(f"image file {place}", Reason.NO_ANNOTATION, detail))
        else:
            numbered[number] = name
    return numbered


class _Inside:
    """Which files lie in a folder, links followed; folders are looked up once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._resolved = root.resolve()
        self._folders: dict[str, bool] = {}

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            RejectedInput: it is not there, is no plain file, or lies outside.
        """
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in path:
            raise RejectedInput(Reason.BAD_ANNOTATION, "the path does not stay below the input")
        try:
            link = S_ISLNK((self._root / place).lstat().st_mode)
            status = (self._root / place).stat()
        except OSError as error:
            raise RejectedInput(Reason.MISSING, "no such file below the input") from error
        inside = self._folder(str(place.parent))
        if link:
            inside = (self._root / place).resolve().is_relative_to(self._resolved)
        if not inside:
            raise RejectedInput(Reason.BAD_ANNOTATION, "a link leads out of the input")
        if not S_ISREG(status.st_mode):
            raise RejectedInput(Reason.MISSING, "not a plain file")
        return status.st_size

    def _folder(self, path: str) -> bool:
        if path not in self._folders:
            self._folders[path] = (self._root / path).resolve().is_relative_to(self._resolved)
        return self._folders[path]


def _checked(inside: _Inside, path: str, name: str) -> tuple[str, Label, int]:
    """Path, class and bytes of a row.

    Raises:
        RejectedInput: says what is wrong, without path and class.
    """
    label = label_of(name)
    size = inside.size(path)
    return PurePosixPath(path).as_posix(), label, size
