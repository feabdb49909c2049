"""Files that belong together by name: images in two folders matched by stem, names listed safely.

Names that begin with a dot (such as those macOS leaves) are not inputs. Everything else ends in a pair or is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from uvd.sequences import Reason
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import IMAGE_SUFFIXES

MAX_DIGITS = 9
"""Of a frame number: manifests hold 32 bits."""


def folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; links to folders count."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def need_folders(root: Path, form: str, *names: str) -> None:
    """
    Raises:
        SourceError: unless `root` has all these folders; `form` says what was expected.
    """
    for path in (root, *(root / name for name in names)):
        if not path.is_dir():
            raise SourceError(f"no folder {path}: expected {form}")


def files_by_stem(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Stem → name of the image files directly in `folder`, the first by name; and those whose stem is taken already."""
    resolved = folder.resolve()
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and path.resolve().is_relative_to(resolved)
    )
    by_stem: dict[str, str] = {}
    doubles = [name for name in names if by_stem.setdefault(Path(name).stem, name) != name]
    return by_stem, doubles


class Matched:
    """The images of a folder of frames and a folder of annotations, by stem.

    Attributes:
        frames, annotations: stem → path relative to the input.
        stems: those that both have, by name.
        refused: all the others, as items.
    """

    def __init__(self, root: Path, frames: str, annotations: str) -> None:
        frame_names, frame_doubles = files_by_stem(root / frames)
        names, doubles = files_by_stem(root / annotations)
        self.frames = {stem: f"{frames}/{name}" for stem, name in frame_names.items()}
        self.annotations = {stem: f"{annotations}/{name}" for stem, name in names.items()}
        self.stems = sorted(self.frames.keys() & self.annotations.keys())
        self.refused: list[Item] = [
            *(refused(f"{frames}/{n}", Reason.NO_ANNOTATION, "another file has this name") for n in frame_doubles),
            *(
                refused(f"{annotations}/{n}", Reason.BAD_ANNOTATION, "another annotation has this name")
                for n in doubles
            ),
            *(
                refused(self.frames[stem], Reason.NO_ANNOTATION, f"no annotation of this name in {annotations}")
                for stem in sorted(self.frames.keys() - self.annotations.keys())
            ),
            *(
                refused(self.annotations[stem], Reason.MISSING, f"no frame of this name in {frames}")
                for stem in sorted(self.annotations.keys() - self.frames.keys())
            ),
        ]


def sizes(root: Path, paths: Collection[str]) -> list[int]:
    """Bytes of files, which identify them in a plan."""
    return [(root / path).stat().st_size for path in paths]


def frame_number(path: str) -> int | None:
    """The number in a file name such as `frame_00042.jpg`: its last run of digits.

    >>> frame_number("a1/frame_00042b.jpg")
    42
    """
    digits = "".join(character if character in "0123456789" else " " for character in Path(path).stem).split()
    return int(digits[-1]) if digits and len(digits[-1].lstrip("0")) <= MAX_DIGITS else None


def listed_lines(path: Path, max_bytes: int) -> Iterator[str]:
    """Lines of a text file that the user gave, without their ends.

    Raises:
        SourceError: if it cannot be read, is too large or is not UTF-8.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise SourceError(f"{path} is larger than {max_bytes} bytes")
        return iter(path.read_bytes().decode("utf-8-sig").splitlines())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: {error}") from error
