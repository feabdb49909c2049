"""The contract of a source: raw inputs → plan of work units → examples.

A source lists its inputs (`plan`: deterministic, cheap, without Ray) and turns one work unit into examples (`read`, in
a worker). Every planned input must come out as an example or as a reject: the runner counts.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uvd.sequences import IMAGE_SIZE, Example, Reason, Reject, Resize, Seeds, Transform, fit
from uvd.sequences.errors import UserError
from uvd.sequences.geometry import MIN_RANDOM_CROP, Resample
from uvd.sequences.layouts import LAYOUTS
from uvd.sequences.reject import RejectedInput
from uvd.sequences.seeds import split_of
from uvd.sequences.stages import StageTimes
from uvd.sources.resources import ORDINARY, Resources

_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,39}$")

Item = Mapping[str, Any]
"""One planned input: JSON-able, with `origin` (what the manifest shows) and whatever identifies its content."""


def refused(origin: str, reason: Reason, detail: str) -> Item:
    """An input that planning has seen to be unusable: `ItemSource` rejects it by name."""
    return {"origin": origin, "refused": str(reason), "detail": detail}


NOT_DATA: dict[str, Any] = {"fingerprint": False}
"""`json_schema_extra` of fields that say where or how fast, not what: they may change between runs of a dataset."""


class SourceConfig(BaseModel):
    """Settings that all sources share; each source adds its own below them in one flat YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """Which source this config is for."""
    name: str = ""
    """Folder below `sequences/`; the source's own name by default. Give one per raw dataset to keep several apart."""
    dataset: str
    """Name of the raw dataset, as the manifests show it."""
    seed: int = 0
    shard_size: int = Field(1000, ge=1, le=100_000)
    """Planned inputs a shard."""
    resize: Resize = "center_crop"
    resample: Resample = "area"
    """`area`: pixels are averaged. `fast`: JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves enough, then the
    cheapest filter: for web lists. `lanczos`: no shortcut, Pillow's Lanczos on the full image."""
    image_codec: Literal["jpeg", "lossless"] = "jpeg"
    """`jpeg`: photos as JPEG q95 4:4:4, annotations as PNG. `lossless`: everything as PNG."""
    layouts: dict[str, float] = {"single": 1.0}
    """Layouts and their mixing weights; each example goes to one of them, drawn with the seed."""
    holdout: dict[Literal["val", "test"], float] = {"val": 0.0}
    """Share of inputs held out for validation and test, by hash of their identity."""

    limit: int | None = Field(None, ge=1)
    """Plan only the first inputs, to try things out."""
    resources: Resources = Field(ORDINARY, json_schema_extra=NOT_DATA)
    """What a job takes of a machine: `{num_cpus: 2, memory_gb: 4, custom: {render: 1}}`."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if name and not _NAME.match(name):
            raise ValueError(f"{name!r} must consist of a-z, 0-9, _ and - (it becomes a folder and part of keys)")
        return name

    @field_validator("layouts")
    @classmethod
    def _known_layouts(cls, layouts: dict[str, float]) -> dict[str, float]:
        unknown = sorted(layouts.keys() - LAYOUTS.keys())
        if unknown:
            raise ValueError(f"unknown layout {unknown[0]!r}; there are {', '.join(LAYOUTS)}")
        if not layouts or min(layouts.values()) < 0 or sum(layouts.values()) <= 0:
            raise ValueError("layouts need weights of 0 or more, one of them over 0")
        return layouts

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """Paths become absolute, with `~` for the home folder: workers have another working directory."""
        if isinstance(value, tuple):
            return tuple(part.expanduser().absolute() if isinstance(part, Path) else part for part in value)
        return value.expanduser().absolute() if isinstance(value, Path) else value

    @field_validator("holdout")
    @classmethod
    def _shares(cls, holdout: dict[Literal["val", "test"], float]) -> dict[Literal["val", "test"], float]:
        if any(share < 0 for share in holdout.values()) or sum(holdout.values()) >= 1:
            raise ValueError("holdout needs shares of 0 or more that leave something to train on")
        return holdout

    @model_validator(mode="after")
    def _default_name(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.source)
        return self

    @property
    def folder(self) -> str:
        return self.name

    def identity(self) -> Mapping[str, Any]:
        """What else the data is made from, such as hashes of networks' weights; part of the fingerprint."""
        return {}

    @property
    def warning(self) -> str:
        """What a person should know before a run with these settings starts; empty if there is nothing."""
        return ""

    @property
    def scale_to(self) -> int | None:
        """For `decode_image`: the shortest side, in pixels, that a photo may be decoded at; None for its full size."""
        if self.resample != "fast":
            return None
        return ceil(IMAGE_SIZE / MIN_RANDOM_CROP) if self.resize == "random_crop" else IMAGE_SIZE


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """One shard's worth of planned inputs. Small and picklable: it says where to look, it holds no pixels."""

    shard: int
    num_inputs: int
    payload: Mapping[str, Any]
    """JSON-able; goes into the shard's fingerprint, so it names inputs with their size."""


@dataclass(frozen=True, slots=True)
class RetriedPart:
    """Inputs of an earlier unit that are tried again, by increasing index."""

    unit: WorkUnit
    indices: tuple[int, ...]


class Source(ABC):
    """Subclass, set `config_class`, implement `plan` and `read`, and add one line to `uvd.sources.SOURCES`.

    Attributes:
        stages: wall time by stage, for run logs.
        counters: whatever else a run log should say of a unit.
    """

    config_class: ClassVar[type[SourceConfig]]
    num_cpus: ClassVar[float] = 1.0
    """CPUs that Ray reserves for a shard; less for sources that wait for others most of the time."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.stages = StageTimes()
        self.counters: Counter[str] = Counter()

    @abstractmethod
    def plan(self) -> Iterator[WorkUnit]:
        """Lists all work units in shard order. Reads no more than names, sizes and footers.

        Raises:
            SourceError: when the input as a whole cannot be used (no such folder, a missing column).
        """

    @abstractmethod
    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        """Turns one unit into examples and rejects, streaming, in a deterministic order.

        Every index in `range(unit.num_inputs)` must appear in an example's `inputs` or in a reject.
        """

    def read_again(self, part: RetriedPart, seeds: Seeds) -> Iterator[Example | Reject]:
        """As `read`, but only the inputs of `part`, under their old indices; sources whose rejects may pass have it.

        Args:
            seeds: those that the part's unit was read with, so that an input becomes what it would have become.

        Raises:
            SourceError: if this source's rejects are final.
        """
        raise SourceError(
            f"source {self.config.source!r} refuses nothing for a reason that passes: nothing to try again"
        )

    def split(self, identity: str) -> str:
        return split_of(identity, self.config.holdout)

    def transform(self, width: int, height: int, seeds: Seeds) -> Transform:
        """The example's one geometric transform, by the config's `resize` and `resample`."""
        # Making a generator costs 0.1 ms, as much as a resize.
        rng = seeds.generator("crop") if self.config.resize == "random_crop" else None
        return fit(width, height, self.config.resize, rng, self.config.resample)


class SourceError(UserError):
    """The input as a whole cannot be used; the message says what was looked for and where."""


class ItemSource(Source):
    """A source whose inputs are a list of items, handled one by one: implement `items` and `examples`."""

    @abstractmethod
    def items(self) -> Iterable[Item]:
        """All planned inputs in a deterministic order."""

    @abstractmethod
    def examples(self, item: Item, index: int, seeds: Seeds) -> Iterator[Example]:
        """Examples of one item; `seeds` is already its own.

        Raises:
            RejectedInput: with the reason why this item cannot be used.
        """

    def plan(self) -> Iterator[WorkUnit]:
        iterator = islice(self.items(), self.config.limit)
        shard = 0
        while items := [dict(item) for item in islice(iterator, self.config.shard_size)]:
            yield WorkUnit(shard=shard, num_inputs=len(items), payload={"items": items})
            shard += 1

    def read(self, unit: WorkUnit, seeds: Seeds) -> Iterator[Example | Reject]:
        for index, item in enumerate(unit.payload["items"]):
            try:
                if "refused" in item:
                    raise RejectedInput(Reason(item["refused"]), item["detail"])
                yield from self.examples(item, index, seeds.child(index))
            except RejectedInput as rejected:
                yield rejected.reject(index, item["origin"])
