"""Objects → 24 views each: GLB, glTF, OBJ, PLY, STL and zips of these, such as a download of Objaverse.

UVDv1's rule (LVM, arXiv 2312.00785): radius in [1.5, 2.2], one elevation in [-45, 45] degrees for each object, azimuth
in steps of 15 degrees; 42,000 objects to train and 8,000 to test. Files are parsed and drawn in a child process.
About 0.5 s an object on one CPU core.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from uvd.renderers.gl import GL_ENVIRONMENT, GLUnavailable, probe_gl
from uvd.renderers.multiview_camera import ELEVATION, FIELD_OF_VIEW, RADIUS, VIEWS, orbit
from uvd.sequences import IMAGE_SIZE, Example, Picture, Reason, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError, WorkUnit
from uvd.sources.isolation import IsolatedProcess
from uvd.sources.objaverse_inputs import ObjectInputs, identity_of
from uvd.sources.objaverse_splits import chosen

HANDLER = "uvd.renderers.multiview_worker:render_file"

Channel = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=0)]
Role = Literal["view", "depth", "normals", "mask"]

ORBIT_LAYOUTS = frozenset({"multiview"})
VIEW_LAYOUTS = frozenset({"pairs", "tuples"})
"""They arrange the roles of one view, where those of `ORBIT_LAYOUTS` arrange all views of an object."""

MAX_PICTURES = 1024
"""Views times roles, of one object: 192 MiB."""


class ObjaverseConfig(SourceConfig):
    """Settings of the `objaverse` source."""

    source: Literal["objaverse"] = "objaverse"
    dataset: str = "objaverse"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder that is searched, with everything below it; or one file, or a list of objects."""
    object_list: Path | None = Field(None, json_schema_extra=NOT_DATA)
    """CSV, TSV, Parquet, JSON, JSON lines or text: takes what it names, by `uid` or by `path` within `input`."""
    patterns: tuple[str, ...] = ("*",)
    """Globs on the path within `input`; a file must match one, and have a suffix of a 3D format or `.zip`."""
    split_counts: dict[Literal["train", "val", "test"], Count] = {"train": 42_000, "test": 8_000}
    """Of a folder at most so many objects of each split are taken, by hash; `{}` takes all. Lists are taken whole."""
    shard_size: int = Field(200, ge=1, le=100_000)
    views: int = Field(VIEWS, ge=1, le=360)
    roles: tuple[Role, ...] = ("view",)
    """What is drawn of each view. With `multiview` each role has sequences of its own, of the same views; `pairs`
    and `tuples` take the roles of each view together, the first one as the photo."""
    radius: tuple[float, float] = RADIUS
    """Range of the camera's distance, in diameters of the object's bounding sphere."""
    elevation: tuple[float, float] = ELEVATION
    """Range of the camera's height in degrees."""
    field_of_view: float = Field(FIELD_OF_VIEW, gt=1, lt=120)
    background: tuple[Channel, Channel, Channel] = (255, 255, 255)
    up: Literal["auto", "y", "z"] = "auto"
    """Upward axis of the files; `auto` is +Z for STL and +Y for all others."""
    max_bytes: int = Field(256 << 20, ge=1)
    """Of a file with all that it refers to."""
    max_faces: int = Field(2_000_000, ge=1)
    too_many_faces: Literal["reject", "simplify"] = "reject"
    """Of an object over `max_faces`; those up to ten times as large can be simplified."""
    timeout_s: float = Field(120.0, gt=0, json_schema_extra=NOT_DATA)
    memory_bytes: int = Field(4 << 30, ge=1 << 28, json_schema_extra=NOT_DATA)
    layouts: dict[str, float] = {"multiview": 1.0}
    holdout: dict[Literal["val", "test"], float] = {"test": 0.16}

    @model_validator(mode="after")
    def _ranges(self) -> ObjaverseConfig:
        if not 0.6 < self.radius[0] <= self.radius[1]:
            raise ValueError(f"radius {self.radius}: expected 0.6 < low <= high")
        if not -89 <= self.elevation[0] <= self.elevation[1] <= 89:
            raise ValueError(f"elevation {self.elevation}: expected -89 <= low <= high <= 89")
        if not self.roles or len(set(self.roles)) < len(self.roles):
            raise ValueError(f"roles {list(self.roles)}: expected one or more, each once")
        if self.views * len(self.roles) > MAX_PICTURES:
            raise ValueError(f"{self.views} views of {len(self.roles)} roles are over {MAX_PICTURES} pictures")
        return self

    @model_validator(mode="after")
    def _fitting_layouts(self) -> ObjaverseConfig:
        unfit = self.layouts.keys() - ORBIT_LAYOUTS - VIEW_LAYOUTS - {"single"}
        if unfit:
            raise ValueError(f"layout {min(unfit)} does not fit views of objects")
        if self.by_view and self.layouts.keys() & ORBIT_LAYOUTS:
            raise ValueError(
                "layout multiview takes all views of an object, pairs and tuples the roles of one view: "
                "make two sources of them, each with a name"
            )
        if self.by_view and len(self.roles) < 2:
            raise ValueError("pairs and tuples need two or more roles, such as roles: [view, depth]")
        return self

    @property
    def by_view(self) -> bool:
        """Whether an example is one view with its roles, and not all views of an object."""
        return bool(self.layouts.keys() & VIEW_LAYOUTS)


class ObjaverseSource(ItemSource):
    """One example an object, with `views` pictures of each role; or one a view, see `ObjaverseConfig.by_view`."""

    config_class: ClassVar[type[SourceConfig]] = ObjaverseConfig
    config: ObjaverseConfig

    def __init__(self, config: ObjaverseConfig) -> None:
        super().__init__(config)
        self._process: IsolatedProcess | None = None

    def items(self) -> Iterator[Item]:
        config = self.config
        inputs = ObjectInputs(config.input, config.object_list, config.patterns)
        if inputs.object_list is not None:
            yield from inputs.items()
            return
        found = list(inputs.items())
        taken = chosen(found, config.holdout, config.split_counts)
        if len(taken) < len(found):
            limits = ", ".join(f"{count} {split}" for split, count in config.split_counts.items())
            message = "objaverse: %d of %d objects are taken, at most %s; split_counts: {} takes all"
            logging.getLogger(__name__).warning(message, len(taken), len(found), limits)
        yield from taken

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        try:
            yield from super().read(unit, seeds)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the child process; the next object starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        config = self.config
        origin = item["origin"]
        if item["bytes"] > config.max_bytes:
            raise RejectedInput(Reason.TOO_LARGE, f"{item['bytes']} bytes, limit {config.max_bytes}")
        with self.stages("render"):
            _, arrays = self._child().call(self._request(item, seeds))
        expected = ((config.views, IMAGE_SIZE, IMAGE_SIZE, 3), "uint8")
        if [(array.shape, array.dtype) for array in arrays] != [expected] * len(config.roles):
            raise RejectedInput(Reason.CRASHED, f"views of {[array.shape for array in arrays]}")
        split = item.get("split") or self.split(identity_of(item))
        views = [self._pictures(origin, number, pixels) for number, pixels in enumerate(zip(*arrays, strict=True))]
        if config.by_view:
            for view in views:
                yield Example((index,), config.dataset, split, view)
        else:
            pictures = tuple(picture for view in views for picture in view)
            yield Example((index,), config.dataset, split, pictures, group=origin)

    def _request(self, item: Item, seeds: Seeds) -> dict[str, Any]:
        """What the child is asked for."""
        config = self.config
        cameras = orbit(seeds.generator("cameras"), config.views, config.radius, config.elevation, config.field_of_view)
        root = ObjectInputs(config.input, config.object_list, config.patterns).root
        return {
            "path": str(root.resolve() / item["origin"]),
            "sha256": item.get("sha256"),
            "max_bytes": config.max_bytes,
            "max_faces": config.max_faces,
            "too_many_faces": config.too_many_faces,
            "size": IMAGE_SIZE,
            "background": config.background,
            "up": config.up,
            "cameras": [[c.azimuth, c.elevation, c.radius, c.field_of_view] for c in cameras],
            "roles": config.roles,
        }

    def _pictures(self, origin: str, number: int, pixels: tuple[NDArray[np.uint8], ...]) -> tuple[Picture, ...]:
        """The roles of one view."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        return tuple(
            Picture(role, picture, origin, size, index=number, drawn=role != "view")
            for role, picture in zip(self.config.roles, pixels, strict=True)
        )

    def _child(self) -> IsolatedProcess:
        if self._process is None:
            try:
                platform = probe_gl()
            except GLUnavailable as error:
                raise SourceError(f"objaverse: this machine cannot draw: {error}") from error
            environment = {**GL_ENVIRONMENT, "PYOPENGL_PLATFORM": platform.name}
            self._process = IsolatedProcess(
                HANDLER,
                timeout_s=self.config.timeout_s,
                memory_bytes=self.config.memory_bytes,
                environment=environment,
            )
        return self._process
