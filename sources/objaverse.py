"""Objects → 24 views each: GLB, glTF, OBJ, PLY and STL files of a folder, such as a download of Objaverse.

UVDv1's rule (LVM, arXiv 2312.00785): radius in [1.5, 2.2], one elevation in [-45, 45] degrees for each object, azimuth
in steps of 15 degrees; 42,000 objects to train and 8,000 to test. Files are parsed and drawn in a child process.
About 0.5 s an object on one CPU core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from uvd.renderers.gl import GL_ENVIRONMENT, GLUnavailable, probe_gl
from uvd.renderers.multiview_camera import ELEVATION, FIELD_OF_VIEW, RADIUS, VIEWS, orbit
from uvd.renderers.multiview_files import FORMATS
from uvd.sequences import IMAGE_SIZE, Example, Picture, Reason, Reject, Seeds
from uvd.sequences.reject import RejectedInput
from uvd.sources.base import NOT_DATA, Item, ItemSource, SourceConfig, SourceError, WorkUnit
from uvd.sources.isolation import IsolatedProcess

HANDLER = "uvd.renderers.multiview_worker:render_file"

Channel = Annotated[int, Field(ge=0, le=255)]


class ObjaverseConfig(SourceConfig):
    """Settings of the `objaverse` source."""

    source: Literal["objaverse"] = "objaverse"
    dataset: str = "objaverse"
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder that is searched, with everything below it."""
    patterns: tuple[str, ...] = ("*",)
    """Globs on the path within `input`; a file must match one, and have a suffix of a 3D format."""
    shard_size: int = Field(200, ge=1, le=100_000)
    views: int = Field(VIEWS, ge=1, le=360)
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
        return self


class ObjaverseSource(ItemSource):
    """One example an object, with `views` pictures of role `view`."""

    config_class: ClassVar[type[SourceConfig]] = ObjaverseConfig
    config: ObjaverseConfig

    def __init__(self, config: ObjaverseConfig) -> None:
        super().__init__(config)
        self._process: IsolatedProcess | None = None

    def items(self) -> Iterator[Item]:
        root = self.config.input
        if not root.is_dir():
            raise SourceError(f"objaverse: no folder {root}")
        origins = sorted(self._files(root))
        if not origins:
            raise SourceError(
                f"objaverse: no file of {', '.join(FORMATS)} in {root} matches {list(self.config.patterns)}"
            )
        for origin in origins:
            yield {"origin": origin, "bytes": (root / origin).stat().st_size}

    def _files(self, root: Path) -> Iterator[str]:
        """Paths below `root`, with `/`."""
        for folder, _, files in os.walk(root):
            for name in files:
                origin = (Path(folder) / name).relative_to(root).as_posix()
                wanted = any(fnmatch(origin, pattern) for pattern in self.config.patterns)
                if wanted and Path(name).suffix.lower() in FORMATS:
                    yield origin

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
        cameras = orbit(seeds.generator("cameras"), config.views, config.radius, config.elevation, config.field_of_view)
        request = {
            "path": str(config.input.resolve() / origin),
            "max_bytes": config.max_bytes,
            "max_faces": config.max_faces,
            "size": IMAGE_SIZE,
            "background": config.background,
            "up": config.up,
            "cameras": [[c.azimuth, c.elevation, c.radius, c.field_of_view] for c in cameras],
        }
        with self.stages("render"):
            _, arrays = self._child().call(request)
        expected = (config.views, IMAGE_SIZE, IMAGE_SIZE, 3)
        if [array.shape for array in arrays] != [expected] or arrays[0].dtype != "uint8":
            raise RejectedInput(Reason.CRASHED, f"views of {[array.shape for array in arrays]}")
        size = (IMAGE_SIZE, IMAGE_SIZE)
        pictures = tuple(Picture("view", pixels, origin, size, index=i) for i, pixels in enumerate(arrays[0]))
        yield Example((index,), config.dataset, self.split(origin), pictures, group=origin)

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
