"""Settings of the `annotated-video` source: those of all kinds, and for some kinds one or two of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from uvd.sources.base import NOT_DATA, SourceConfig
from uvd.sources.decode import MAX_BYTES, MAX_PIXELS

_OWNERS = {
    "annotation": "frames",
    "colour_by": "vipseg",
    "hands": "hand14k",
    "boxes_over_image": "ava",
    "files_start_s": "ava",
    "render": "jhmdb",
}
"""Settings that mean something for one kind only."""


class AnnotatedVideoConfig(SourceConfig):
    """Settings of the `annotated-video` source."""

    source: Literal["annotated-video"] = "annotated-video"
    kind: Literal["frames", "vipseg", "hand14k", "ava", "jhmdb"] = "frames"
    """In which published form the input is; `frames` is the general one, a folder of frames and one of annotations."""
    input: Path = Field(json_schema_extra=NOT_DATA)
    """Folder in the form that the kind says."""
    stride: int = Field(1, ge=1)
    """Every how many annotated frames one is taken."""
    annotation: Literal["labels", "colours"] = "labels"
    """frames: `labels` are single-channel ids, coloured by uvd's palette; `colours` RGB pictures, taken as they are."""
    colour_by: Literal["track", "class"] = "track"
    """vipseg: a colour for each object of a clip, or for each class of the data set."""
    hands: Literal["white", "palette"] = "white"
    """hand14k: masks of 0 and 1, or 0 and 255, in white; or masks of ids (left, right) in the palette's colours."""
    boxes_over_image: bool = True
    """ava: boxes over the frame, the paper's overlay; otherwise on black."""
    files_start_s: float = Field(0.0, ge=0)
    """ava: second of the film at which the files start; 900 for copies that were cut to the annotated quarter."""
    render: tuple[Literal["pose", "mask"], ...] = Field(("pose", "mask"), min_length=1)
    """jhmdb: what to draw; each makes sequences of its own."""
    layouts: dict[str, float] = {"interleaved": 1.0, "grouped": 1.0}
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Of an image file."""
    max_bytes: int = Field(MAX_BYTES, ge=1)
    """Of an image or .mat file."""

    @model_validator(mode="after")
    def _settings_of_this_kind(self) -> Self:
        """Refuses what would be ignored."""
        for name, owner in _OWNERS.items():
            if self.kind != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of kind {owner}, not of {self.kind}")
        if len(set(self.render)) != len(self.render):
            raise ValueError("render names something twice")
        return self
