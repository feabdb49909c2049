"""`annotated-video`: frames of videos and their annotations → interleaved and grouped sequences of up to 16 pictures.

The `kind` says in which published form the input is; `sources/annotated` has a reader for each. Planned inputs are
windows of up to 8 annotated frames, and everything that has no partner or is wrong by itself, which is rejected by
name. All frames of a window share one transform, and each shares it with its annotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences import Example, Picture, Reason, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video import reader_class
from uvd.sources.annotated_video.base import AnnotatedFrame
from uvd.sources.annotated_video.config import AnnotatedVideoConfig
from uvd.sources.base import Item, ItemSource, SourceConfig, WorkUnit


class AnnotatedVideoSource(ItemSource):
    config_class: ClassVar[type[SourceConfig]] = AnnotatedVideoConfig
    config: AnnotatedVideoConfig

    def __init__(self, config: AnnotatedVideoConfig) -> None:
        super().__init__(config)
        self._reader = reader_class(config.kind)(config)

    def items(self) -> Iterator[Item]:
        return self._reader.items()

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        try:
            yield from super().read(unit, seeds)
        finally:
            self._reader.close()

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        pictures: list[Picture] = []
        left_out: list[RejectedInput] = []
        shows = False
        for read in self._frames(item):
            if isinstance(read, RejectedInput):
                left_out.append(read)
                continue
            with self.stages("render"):
                frame, annotation, visible = self._pictures(read, item["role"], seeds)
            pictures += [frame, annotation]
            shows |= visible
        if pictures and not shows:
            raise RejectedInput(Reason.NO_ANNOTATION, "no annotation is visible in the crop of these frames")
        if pictures:
            split = item.get("split") or self.split(item["clip"])
            yield Example((index,), self.config.dataset, split, tuple(pictures), group=item["clip"])
        if left_out:
            raise left_out[0]

    def _frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        frames = self._reader.frames(item)
        while True:
            with self.stages("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def _pictures(self, read: AnnotatedFrame, role: str, seeds: Seeds) -> tuple[Picture, Picture, bool]:
        transform = self.transform(read.pixels.shape[1], read.pixels.shape[0], seeds)
        pixels = transform.image(read.pixels)
        drawn, visible = read.draw(transform, pixels)
        frame = Picture("frame", pixels, read.origin, read.size, read.number)
        return frame, Picture(role, drawn, read.annotation_origin, read.size, read.number, drawn=True), visible


__all__ = ["AnnotatedVideoConfig", "AnnotatedVideoSource"]
