"""`annotated`: photos with annotations → pairs and tuples in which every annotation is a picture.

The `kind` says in which published form the input is; `sources/annotated` has a reader for each. Planned inputs are
photos, and everything that has no partner or is wrong by itself, which is rejected by name. A photo and all that is
drawn of it share one transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from uvd.sequences import Example, Picture, Reason, Reject, Seeds, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated import reader_class
from uvd.sources.annotated.base import AnnotatedImage
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.base import Item, ItemSource, SourceConfig, WorkUnit
from uvd.sources.drawing import naming
from uvd.sources.photos import PhotoSource


class AnnotatedSource(PhotoSource, ItemSource):
    config_class: ClassVar[type[SourceConfig]] = AnnotatedConfig
    config: AnnotatedConfig

    def __init__(self, config: SourceConfig) -> None:
        super().__init__(config)
        self._reader = reader_class(self.config.reader)(self.config)

    def items(self) -> Iterator[Item]:
        return self._reader.items()

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        try:
            yield from self.estimated(super().read(unit, seeds))
        finally:
            self._reader.close()

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        with self.stages("decode"):
            image = self._reader.open(item)
        transform = self.transform(image.pixels.shape[1], image.pixels.shape[0], seeds)
        photo = Picture("image", transform.image(image.pixels), image.origin, image.size)
        split = item.get("split") or self.split(image.origin)
        with self.stages("render"):
            drawn = self._drawn(image, photo, transform)
        pictures = drawn.pop("", [])
        if pictures or self.config.adds_pictures:
            yield self._with_added(index, split, image, photo, pictures, transform, seeds)
        for group, alone in drawn.items():
            yield Example((index,), self.config.dataset, split, (photo, *alone), group)
        if not (pictures or drawn or self.config.adds_pictures):
            what = "no annotation is visible in the crop" if image.annotations else "nothing is annotated in it"
            raise RejectedInput(Reason.NO_ANNOTATION, what)

    def _with_added(
        self,
        index: int,
        split: str,
        image: AnnotatedImage,
        photo: Picture,
        pictures: list[Picture],
        transform: Transform,
        seeds: Seeds,
    ) -> Example:
        """The photo, what was drawn of it, and what is derived and estimated."""
        self.show(index, image.pixels, transform, image.people)
        pictures = [photo, *pictures, *self.derived(photo, seeds)]
        return Example((index,), self.config.dataset, split, tuple(pictures))

    def _drawn(self, image: AnnotatedImage, photo: Picture, transform: Transform) -> dict[str, list[Picture]]:
        """The pictures of all annotations that are visible, by group."""
        groups: dict[str, list[Picture]] = {}
        for annotation in image.annotations:
            with naming(annotation.origin):
                pixels, visible = annotation.draw(transform, photo.pixels)
            if visible:
                picture = Picture(
                    annotation.role,
                    pixels,
                    annotation.origin,
                    image.size,
                    drawn=annotation.drawn,
                    degraded=annotation.degraded,
                )
                groups.setdefault(annotation.group, []).append(picture)
        return groups


__all__ = ["AnnotatedConfig", "AnnotatedSource"]
