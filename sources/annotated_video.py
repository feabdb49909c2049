"""`annotated-video`: frame folders with one annotation image a frame → interleaved and grouped sequences.

Layout of the input: `CLIP/frames/NAME.jpg` and `CLIP/ANNOTATION/NAME.png`; frame and annotation belong together by
name, never by sort order. Planned inputs are windows of 8 annotated frames; a frame without annotation, or the
reverse, is an input of its own that is rejected by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from uvd.renderers.segmentation import render_segmentation
from uvd.sequences import MAX_IMAGES, Example, Picture, Reason, Seeds, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError
from uvd.sources.decode import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    decode_image,
    decode_labels,
    list_files,
    read_bytes,
)

FRAMES = "frames"
WINDOW = MAX_IMAGES // 2


class AnnotatedVideoConfig(SourceConfig):
    """Settings of the `annotated-video` source."""

    source: Literal["annotated-video"] = "annotated-video"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder of clips."""
    stride: int = Field(1, ge=1)
    """Every how many annotated frames one is taken."""
    annotation: Literal["labels", "colours"] = "labels"
    """`labels`: single-channel ids, coloured by uvd's palette. `colours`: RGB pictures, taken as they are."""
    layouts: dict[str, float] = {"interleaved": 1.0, "grouped": 1.0}
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    max_bytes: int = Field(MAX_BYTES, ge=1)


class AnnotatedVideoSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = AnnotatedVideoConfig
    config: AnnotatedVideoConfig

    def items(self) -> Iterator[Item]:
        root = self.config.input
        clips = sorted(path for path in root.iterdir() if (path / FRAMES).is_dir()) if root.is_dir() else []
        if not clips:
            raise SourceError(f"no clips below {root}: expected folders CLIP/{FRAMES} and CLIP/ANNOTATION")
        for clip in clips:
            frames, doubles = _by_stem(clip / FRAMES)
            for name in doubles:
                yield {"origin": f"{clip.name}/{FRAMES}/{name}", "unmatched": "another frame has this name"}
            kinds = sorted(path.name for path in clip.iterdir() if path.is_dir() and path.name != FRAMES)
            for kind in kinds:
                annotations, doubles = _by_stem(clip / kind)
                for name in doubles:
                    yield {"origin": f"{clip.name}/{kind}/{name}", "unmatched": "another annotation has this name"}
                yield from self._plan_clip(clip.name, kind, frames, annotations)
            if not kinds:
                yield {"origin": clip.name, "unmatched": "no annotation folder"}

    def _plan_clip(self, clip: str, kind: str, frames: dict[str, str], annotations: dict[str, str]) -> Iterator[Item]:
        matched = sorted(frames.keys() & annotations.keys())[:: self.config.stride]
        for stems in _windows(matched):
            pairs = [[f"{clip}/{FRAMES}/{frames[stem]}", f"{clip}/{kind}/{annotations[stem]}"] for stem in stems]
            sizes = [(self.config.input / path).stat().st_size for pair in pairs for path in pair]
            yield {"origin": pairs[0][0], "kind": kind, "clip": clip, "pairs": pairs, "bytes": sizes}
        for stem in sorted(frames.keys() - annotations.keys()):
            yield {"origin": f"{clip}/{FRAMES}/{frames[stem]}", "unmatched": f"no annotation of this name in {kind}"}
        for stem in sorted(annotations.keys() - frames.keys()):
            yield {"origin": f"{clip}/{kind}/{annotations[stem]}", "unmatched": "no frame of this name"}

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        if "unmatched" in item:
            raise RejectedInput(Reason.NO_ANNOTATION, item["unmatched"])
        pictures: list[Picture] = []
        for frame, annotation in item["pairs"]:
            pictures += self._pair(frame, annotation, item["kind"], seeds)
        yield Example((index,), self.config.dataset, self.split(item["clip"]), tuple(pictures), group=item["clip"])

    def _pair(self, frame: str, annotation: str, kind: str, seeds: Seeds) -> Iterator[Picture]:
        with self.stages("decode"):
            pixels, size = self._decode_frame(frame)
            labels = self._decode_annotation(annotation)
        if labels.shape[:2] != pixels.shape[:2]:
            raise RejectedInput(
                Reason.BAD_ANNOTATION, f"{annotation} is {labels.shape[1::-1]}, its frame {pixels.shape[1::-1]}"
            )
        transform = self.transform(*size, seeds)
        number = _number(frame)
        with self.stages("render"):
            yield Picture("frame", transform.image(pixels), frame, size, number)
            yield Picture(kind, _coloured(labels, transform), annotation, size, number, drawn=True)

    def _decode_frame(self, path: str) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        data = read_bytes(self.config.input / path, self.config.max_bytes)
        return decode_image(data, max_pixels=self.config.max_pixels)

    def _decode_annotation(self, path: str) -> NDArray[np.int32] | NDArray[np.uint8]:
        data = read_bytes(self.config.input / path, self.config.max_bytes)
        if self.config.annotation == "labels":
            return decode_labels(data, max_pixels=self.config.max_pixels)
        return decode_image(data, max_pixels=self.config.max_pixels)[0]


def _coloured(labels: NDArray[np.int32] | NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    resized = transform.labels(labels)
    if resized.ndim == 3:
        return resized.astype(np.uint8)
    try:
        return render_segmentation(resized.astype(np.int32))
    except ValueError as error:
        raise RejectedInput(Reason.BAD_ANNOTATION, str(error)) from error


def _by_stem(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Stem → file name, the first by name; and the files whose stem another one has already."""
    names = [name for name, _ in list_files(folder, IMAGE_SUFFIXES) if "/" not in name]
    by_stem: dict[str, str] = {}
    doubles = [name for name in names if by_stem.setdefault(Path(name).stem, name) != name]
    return by_stem, doubles


def _windows(stems: list[str]) -> Iterator[tuple[str, ...]]:
    return iter(tuple(stems[start : start + WINDOW]) for start in range(0, len(stems), WINDOW))


def _number(path: str) -> int | None:
    """The frame number in a file name such as `frame_00042.jpg`: its last run of digits."""
    digits = "".join(character if character.isdigit() else " " for character in Path(path).stem).split()
    return int(digits[-1]) if digits and len(digits[-1]) < 10 else None
