"""Settings of the `annotated` source: those of all kinds, and for some kinds a few of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from uvd.sources.annotated.map_form import MapForm
from uvd.sources.annotated.presets import PRESETS
from uvd.sources.base import NOT_DATA
from uvd.sources.decode import MAX_BYTES
from uvd.sources.photos import PhotoConfig

Render = Literal["boxes", "filled_boxes", "pose", "segmentation", "foreground"]
Kind = Literal[
    "coco",
    "panoptic",
    "voc",
    "yolo",
    "files",
    "shards",
    # forms of `files`
    "ade20k",
    "cityscapes",
    "coco-stuff",
    "voc-segmentation",
    "nyu-depth",
    "kitti-depth",
    "pairs",
    "stereo",
]

_OWNERS: dict[str, tuple[str, ...]] = {
    "annotations": ("coco", "panoptic"),
    "render": ("coco", "voc", "yolo"),
    "boxes_over_image": ("coco", "voc", "yolo"),
    "masks": ("panoptic",),
    "colour_by": ("panoptic",),
    "images": ("files",),
    "maps": ("files",),
    "folder_splits": ("files",),
    "roles": ("files", *PRESETS),
}
"""Settings that mean something for some kinds only."""


class AnnotatedConfig(PhotoConfig):
    """Settings of the `annotated` source."""

    source: Literal["annotated"] = "annotated"
    kind: Kind = "coco"
    """In which published form the input is; `files` is the general one, photos and maps matched by their names."""
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder in the form that the kind says; for `coco` that of the images which the JSON's `file_name`s name; for
    `shards` one folder of image shards, DATASET/sequences/NAME, made with the layout `whole`."""
    annotations: tuple[Path, ...] = Field((), json_schema_extra=NOT_DATA)
    """coco, panoptic: JSON files of the same images, such as instances and person keypoints."""
    render: tuple[Render, ...] = Field(("boxes", "pose", "segmentation"), min_length=1)
    """coco, voc, yolo: what to draw, where an image has it. `filled_boxes` are white on black; `foreground` makes a
    white mask on black for each class, in sequences of one class (the form of Pascal-5i)."""
    boxes_over_image: bool = True
    """coco, voc, yolo: boxes over the photo, the paper's overlay; otherwise on black."""
    masks: Path | None = Field(None, json_schema_extra=NOT_DATA)
    """panoptic: folder of the PNGs; by default a folder beside the JSON with its name."""
    colour_by: Literal["class", "segment"] = "class"
    """panoptic: a colour for each class of the data set, or for each segment of an image."""
    images: str = ""
    """files: which photos, as a pattern of paths below the input: `*` stands for part of a name, `**` for folders."""
    maps: dict[str, MapForm] = {}
    """files: role → which files, in what form. Each `*` must stand for the same as in the photo's path."""
    folder_splits: bool = False
    """files: whether folders named `train`, `val2017`, `validation`, ... say the split."""
    roles: tuple[str, ...] = ()
    """files and its forms: which of the maps; all by default."""
    layouts: dict[str, float] = {"pairs": 1.0, "tuples": 1.0}
    max_bytes: int = Field(MAX_BYTES, ge=1)
    """Of an image or map file."""

    @model_validator(mode="after")
    def _settings_of_this_kind(self) -> Self:
        """Refuses what would be ignored, and what is missing."""
        for name, owners in _OWNERS.items():
            if self.kind not in owners and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of kind {' or '.join(owners)}, not of {self.kind}")
        if self.kind in ("coco", "panoptic") and not self.annotations:
            raise ValueError(f"kind {self.kind} needs annotations: its JSON files")
        if self.kind == "files" and not (self.images and self.maps):
            raise ValueError("kind files needs images and maps")
        if unknown := sorted(set(self.roles) - self._all_maps.keys()):
            raise ValueError(f"kind {self.kind} has no role {unknown[0]!r}; there are {', '.join(self._all_maps)}")
        for name in ("render", "derive"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names something twice")
        if twice := self.annotated_roles & {*self.estimate.roles, *self.derive}:
            raise ValueError(f"{min(twice)} is annotated and would be derived or estimated too: leave one of them out")
        if self._groups and self.layouts.get("whole"):
            raise ValueError("masks of one class (foreground) cannot be kept by the layout whole, which has no classes")
        return self

    @field_validator("annotations", mode="before")
    @classmethod
    def _one_file(cls, annotations: object) -> object:
        return (annotations,) if isinstance(annotations, str | Path) else annotations

    @property
    def _all_maps(self) -> dict[str, MapForm]:
        return PRESETS[self.kind].maps if self.kind in PRESETS else self.maps

    @property
    def _maps(self) -> dict[str, MapForm]:
        return {role: form for role, form in self._all_maps.items() if not self.roles or role in self.roles}

    @property
    def _groups(self) -> bool:
        """Whether there are masks of one class, in sequences of their own."""
        if self.reader == "files":
            return any(form.foreground for form in self._maps.values())
        return self.kind in ("coco", "voc", "yolo") and "foreground" in self.render

    @property
    def annotated_roles(self) -> set[str]:
        """Roles that the annotations may give."""
        if self.reader == "files":
            return set(self._maps)
        drawn = {str(kind) for kind in self.render if kind != "pose" or self.kind not in ("voc", "yolo")}
        return {"panoptic": {"segmentation"}, "shards": set[str]()}.get(self.kind, drawn)

    @property
    def has_annotations(self) -> bool:
        return True

    @property
    def gives_people(self) -> bool:
        return self.kind in ("coco", "voc")

    @property
    def reader(self) -> str:
        """The reader of this kind: the forms of `files` share one."""
        return "files" if self.kind in PRESETS else self.kind
