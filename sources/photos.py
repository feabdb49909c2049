"""What sources of photos have in common: pictures derived from a photo alone, and pictures estimated by networks.

Derived pictures (grey, masked, degraded) cost little and are made at once. Estimated ones (depth, normals, edges,
segmentation, pose) are made for a batch of photos at a time, in the order of the inputs, so that batches depend on the
shard alone. Colourisation and inpainting are the paper's (section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from uvd.renderers.derived import DERIVED, Derived, DeriveSettings
from uvd.renderers.estimators.base import Estimator, View
from uvd.renderers.estimators.config import EstimateConfig
from uvd.renderers.estimators.opening import open_estimators, weights_of
from uvd.sequences import Example, Picture, Reason, Reject, Seeds, Transform
from uvd.sources.base import Source, SourceConfig
from uvd.sources.decode import MAX_PIXELS


class PhotoConfig(SourceConfig):
    """Settings of all sources of photos."""

    derive: tuple[Derived, ...] = ()
    """Pictures made from the photo itself, such as `grey` (colourisation), `masked` (inpainting) or `noise`."""
    derive_settings: DeriveSettings = DeriveSettings()
    """How strong what is derived may be."""
    estimate: EstimateConfig = EstimateConfig()
    """Pictures made by networks."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)

    @property
    def gives_people(self) -> bool:
        """Whether annotations may say where people are."""
        return False

    @property
    def has_annotations(self) -> bool:
        """Whether photos come with annotations."""
        return False

    @model_validator(mode="after")
    def _something_beside_the_photo(self) -> Self:
        wanted = [layout for layout in self.layouts if self.layouts[layout] and layout != "single"]
        if others := sorted(set(wanted) - {"pairs", "tuples", "whole"}):
            raise ValueError(f"layout {others[0]} does not arrange photos: use single, pairs, tuples or whole")
        alone = [layout for layout in wanted if layout != "whole"]
        if alone and not self.has_annotations and not self.adds_pictures:
            raise ValueError(f"layout {alone[0]} needs pictures beside the photo: set derive or estimate")
        return self

    @model_validator(mode="after")
    def _boxes_that_are_given(self) -> Self:
        pose = self.estimate.pose
        if pose is not None and pose.backend == "mmpose" and pose.boxes == "given" and not self.gives_people:
            raise ValueError("estimate.pose.boxes is given, and no annotation of this source gives boxes of people")
        return self

    @property
    def scale_to(self) -> int | None:
        # Networks see the photo larger than the picture is.
        return None if self.estimate.wanted else super().scale_to

    @property
    def adds_pictures(self) -> bool:
        """Whether every photo gets a picture beside it."""
        return bool(self.derive) or self.estimate.wanted

    def identity(self) -> Mapping[str, Any]:
        return weights_of(self.estimate)


class PhotoSource(Source):
    """A source whose examples begin with a photo: make `derived` part of them, pass outcomes through `estimated`."""

    config: PhotoConfig

    def __init__(self, config: SourceConfig) -> None:
        super().__init__(config)
        self._views: dict[int, list[View]] = {}
        """Input → what each estimator is to see of it."""

    def _estimators(self) -> tuple[Estimator, ...]:
        return open_estimators(self.config.estimate) if self.config.estimate.wanted else ()

    def derived(self, photo: Picture, seeds: Seeds) -> Iterator[Picture]:
        """Pictures made from a photo alone, in the order of `derive`."""
        for kind in self.config.derive:
            pixels = DERIVED[kind](photo.pixels, seeds.generator(kind), self.config.derive_settings)
            yield Picture(kind, pixels, photo.origin, photo.size, photo.index, degraded=True)

    def show(
        self, index: int, pixels: NDArray[np.uint8], transform: Transform, boxes: NDArray[np.float64] | None = None
    ) -> None:
        """Keeps what the estimators are to see of an input.

        Args:
            pixels: `(H, W, 3)` uint8 RGB that `transform` is fitted to.
            boxes: `(N, 4)` x, y, width, height of people in the same pixels, if an annotation says where they are.
        """
        views = []
        for estimator in self._estimators():
            larger = replace(transform, size=estimator.side)
            views.append(View(larger.image(pixels), None if boxes is None else larger.boxes(boxes)))
        if views:
            self._views[index] = views

    def estimated(self, outcomes: Iterator[Example | Reject]) -> Iterator[Example | Reject]:
        """Adds estimated pictures to the first example of each input that was shown; order stays."""
        if not self.config.estimate.wanted:
            yield from outcomes
            return
        waiting: list[tuple[Example | Reject, list[View]]] = []
        shown = 0
        for outcome in outcomes:
            views = self._views.pop(outcome.inputs[0], []) if isinstance(outcome, Example) else []
            waiting.append((outcome, views))
            shown += bool(views)
            if shown == self.config.estimate.batch_size:
                yield from self._finish(waiting)
                waiting, shown = [], 0
        yield from self._finish(waiting)

    def _finish(self, waiting: list[tuple[Example | Reject, list[View]]]) -> Iterator[Example | Reject]:
        batch = [views for _, views in waiting if views]
        drawn: list[dict[str, NDArray[np.uint8]]] = [{} for _ in batch]
        with self.stages("estimate"):
            for place, estimator in enumerate(self._estimators() if batch else ()):
                for pictures, made in zip(drawn, estimator.estimate([views[place] for views in batch]), strict=True):
                    pictures.update({role: made[role] for role in estimator.roles if role in made})
        estimates = iter(drawn)
        for outcome, views in waiting:
            yield _with_pictures(outcome, next(estimates)) if isinstance(outcome, Example) and views else outcome


def _with_pictures(example: Example, pictures: Mapping[str, NDArray[np.uint8]]) -> Example | Reject:
    photo = example.pictures[0]
    if not pictures and len(example.pictures) == 1:
        return Reject(example.inputs[0], photo.origin, Reason.NO_ANNOTATION, "the networks found nothing in it")
    added = (
        Picture(role, pixels, photo.origin, photo.size, photo.index, drawn=True) for role, pixels in pictures.items()
    )
    return replace(example, pictures=(*example.pictures, *added))
