"""Clips behind one interface, whether they are a stretch of a video file, a folder of frames or part of a tar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.decode import decode_image, read_bytes
from uvd.sources.image_tars import DamagedTarError, TarMember, list_members
from uvd.sources.input_place import InputFile, InputPlace
from uvd.sources.video_decoder import DecodedFrame, FrameIndex, VideoDecoder


class Clip(ABC):
    """Frames in the order of time.

    Attributes:
        times_s: `(N,)` float64, increasing; frames without a rate of their own are counted, one a second.
        timed: whether `times_s` are times and not numbers.
        lacking: frames that it should have had, after the last.
    """

    times_s: NDArray[np.float64]
    timed: bool = False
    lacking: int = 0

    @abstractmethod
    def frames(self, places: Sequence[int], short_side: int, square: bool = False) -> Iterator[DecodedFrame]:
        """Decodes the frames at some places, increasing; those that cannot be decoded do not come.

        Args:
            square: no more than the centred square is needed.

        Raises:
            RejectedInput: the clip cannot be read at all.
        """

    def cuts(self, threshold: float) -> list[int]:
        """Places at which a new scene begins.

        Raises:
            RejectedInput: the clip cannot be read at all.
        """
        from uvd.sources.scene_cuts import SIDE, CutFinder  # few ask for it, and it imports SceneDetect

        finder = CutFinder(threshold)
        for frame in self.frames(range(len(self.times_s)), SIDE):
            finder.add(frame.place, frame.pixels)
        return finder.cuts


class FileClip(Clip):
    """A stretch of a video file."""

    timed = True

    def __init__(self, decoder: VideoDecoder, path: Path, start_s: float, end_s: float | None) -> None:
        self._decoder, self._path = decoder, path
        self._index: FrameIndex = decoder.index(path, start_s, end_s)
        self.times_s = self._index.times_s
        self.lacking = self._index.lacking

    def frames(self, places: Sequence[int], short_side: int, square: bool = False) -> Iterator[DecodedFrame]:
        return self._decoder.frames(self._path, places, self._index, short_side, square)

    def cuts(self, threshold: float) -> list[int]:
        return self._decoder.cuts(self._path, self._index, threshold)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one frame may be that comes as an image file."""

    max_bytes: int
    max_pixels: int


class ImageClip(Clip):
    """Frames that are image files of their own, in the order of the numbers in their names."""

    def __init__(self, names: Sequence[str], limits: ImageLimits) -> None:
        self._names = names
        self._limits = limits
        self.times_s = np.arange(len(names), dtype=np.float64)

    @abstractmethod
    def read(self, place: int) -> bytes:
        """The file at a place.

        Raises:
            RejectedInput: it is not there, or too large.
        """

    def frames(self, places: Sequence[int], short_side: int, square: bool = False) -> Iterator[DecodedFrame]:
        for place in places:
            try:
                data = self.read(place)
                pixels, size = decode_image(data, max_pixels=self._limits.max_pixels, scale_to=short_side)
            except RejectedInput:
                continue  # the caller sees which frames are missing and accounts for the windows that needed them
            yield DecodedFrame(place, place, float(place), _shrunk(pixels, short_side), size)


class FolderClip(ImageClip):
    """A folder of frames."""

    def __init__(self, folder: Path, names: Sequence[str], limits: ImageLimits) -> None:
        super().__init__(names, limits)
        self._folder = folder

    def read(self, place: int) -> bytes:
        return read_bytes(self._folder / self._names[place], self._limits.max_bytes)


class TarClip(ImageClip):
    """Frames in one folder of a tar; read by their offsets, never extracted."""

    def __init__(self, path: Path, folder: str, suffixes: frozenset[str], limits: ImageLimits) -> None:
        self._place = InputPlace(str(path))
        self._path = path
        listed = _tar_folders(path, suffixes, path.stat().st_mtime_ns if path.is_file() else 0)
        members = sorted(listed.get(folder, []), key=lambda member: natural_key(member.name))
        super().__init__([member.name for member in members], limits)
        self._members = members

    def read(self, place: int) -> bytes:
        member = self._members[place]
        if member.size > self._limits.max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{member.size} bytes, over {self._limits.max_bytes}")
        self._file.seek(member.content)
        return self._file.read(member.size)

    @cached_property
    def _file(self):  # type: ignore[no-untyped-def]  # a NativeFile, which closes with the clip
        return self._place.open(self._path.name)


def tar_frames(place: InputPlace, path: Path, suffixes: frozenset[str]) -> Iterator[TarMember]:
    """The image members of a tar.

    Raises:
        RejectedInput: the tar is damaged, or not there any more.
    """
    if not path.is_file():
        raise RejectedInput(Reason.MISSING, "no such file")
    try:
        for member in list_members(place, InputFile(path.name, path.stat().st_size)):
            if member.suffix in suffixes:
                yield member
    except DamagedTarError as error:
        raise RejectedInput(Reason.TRUNCATED, str(error)) from error


@lru_cache(maxsize=1)
def _tar_folders(path: Path, suffixes: frozenset[str], changed_ns: int) -> dict[str, list[TarMember]]:
    """The image members of a tar by folder; kept for the next clip of the same tar, as long as that is unchanged."""
    folders: dict[str, list[TarMember]] = {}
    for member in tar_frames(InputPlace(str(path)), path, suffixes):
        folders.setdefault(folder_of(member), []).append(member)
    return folders


def folder_of(member: TarMember) -> str:
    return member.name.rpartition("/")[0]


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts `frame_2` before `frame_10`."""
    parts: list[tuple[int, int, str]] = []
    run = ""
    for character in [*name, ""]:
        if run and (not character or character.isdecimal() != run[0].isdecimal()):
            parts.append((0, int(run), "") if run[0].isdecimal() and len(run) < 19 else (1, 0, run))
            run = ""
        run += character
    return parts, name


def _shrunk(pixels: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
