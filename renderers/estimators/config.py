"""Settings of the estimators: which networks draw depth, normals, edges, segmentation and pose of photos.

Paths and hub ids say where weights are; the files' hashes, not their places, are part of what a dataset was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PLACE: dict[str, Any] = {"fingerprint": False}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DepthSettings(_Settings):
    """Relative depth by a depth-estimation network of `transformers` (DPT, Depth Anything, ZoeDepth, GLPN, ...)."""

    model: str = Field(json_schema_extra=_PLACE)
    """Folder with `config.json`, `preprocessor_config.json` and safetensors, or a Hugging Face hub id."""
    predicts: Literal["inverse", "metric"] = "inverse"
    """What grows: `inverse` depth (DPT, Depth Anything), or distance (GLPN, ZoeDepth, Depth Anything metric)."""


class NormalsSettings(_Settings):
    """Surface normals, by a network or from the geometry of the estimated depth."""

    model: str = Field("", json_schema_extra=_PLACE)
    """A DPT with three output channels (Omnidata's form); empty: from the depth of `depth`, as a pinhole camera
    sees it."""
    fov_degrees: float = Field(55.0, gt=1, lt=170)
    """Field of view of the picture's side, for normals from depth."""


class EdgesSettings(_Settings):
    """Edges by a holistically nested edge detector (HED, arXiv 1504.06375)."""

    weights: Path = Field(json_schema_extra=_PLACE)
    """`.safetensors`, `.pth` or Keras `.weights.h5`."""


class SegmentationSettings(_Settings):
    """Semantic or panoptic segmentation by a network of `transformers` (SegFormer, Mask2Former, OneFormer, ...)."""

    model: str = Field(json_schema_extra=_PLACE)
    """Folder or hub id, as for depth."""
    form: Literal["semantic", "panoptic"] = "semantic"
    """`semantic`: a colour for each class of the network; `panoptic`: for each segment, largest first."""


class PoseSettings(_Settings):
    """Human pose: BlazePose, whose weights packages carry, or any top-down network of MMPose."""

    backend: Literal["blazepose", "mmpose"] = "blazepose"
    model_dir: Path | None = Field(None, json_schema_extra=_PLACE)
    """blazepose: folder with the `.tflite` files; by default those that `uvd samples` fetches."""
    config: Path | None = Field(None, json_schema_extra=_PLACE)
    """mmpose: config file of the network."""
    checkpoint: Path | None = Field(None, json_schema_extra=_PLACE)
    """mmpose: its weights."""
    detector_config: Path | None = Field(None, json_schema_extra=_PLACE)
    """mmpose: config file of MMDetection's person detector, for boxes that are `detected`."""
    detector_checkpoint: Path | None = Field(None, json_schema_extra=_PLACE)
    boxes: Literal["detected", "given"] = "detected"
    """mmpose: where people are: by the detector, or by the boxes of the annotations (COCO's category 1)."""
    threshold: float = Field(0.3, ge=0, le=1)
    """Keypoints with a lower score are not drawn."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        own = ("config", "checkpoint", "detector_config", "detector_checkpoint")
        if self.backend == "blazepose" and (self.boxes == "given" or any(getattr(self, name) for name in own)):
            raise ValueError(f"blazepose finds people itself: {', '.join(own)} and boxes: given are mmpose's")
        if self.backend == "mmpose" and self.model_dir is not None:
            raise ValueError("model_dir is blazepose's; mmpose has config and checkpoint")
        if self.backend == "mmpose":
            if self.config is None or self.checkpoint is None:
                raise ValueError("mmpose needs config and checkpoint")
            if self.boxes == "detected" and (self.detector_config is None or self.detector_checkpoint is None):
                raise ValueError("mmpose with detected boxes needs detector_config and detector_checkpoint")
        return self


class EstimateConfig(_Settings):
    """What to estimate of each photo; nothing by default."""

    depth: DepthSettings | None = None
    normals: NormalsSettings | None = None
    edges: EdgesSettings | None = None
    segmentation: SegmentationSettings | None = None
    pose: PoseSettings | None = None
    batch_size: int = Field(8, ge=1, le=1024)
    """Photos that a network sees at once. Part of what a dataset is made from: the last bit depends on it."""
    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=_PLACE)

    @model_validator(mode="after")
    def _depth_for_normals(self) -> Self:
        if self.normals is not None and not self.normals.model and self.depth is None:
            raise ValueError("normals without a model are made from depth: set depth too")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the pictures that are estimated."""
        names = ("depth", "normals", "edges", "segmentation", "pose")
        return tuple(name for name in names if getattr(self, name) is not None)

    @property
    def wanted(self) -> bool:
        """Whether anything is estimated."""
        return bool(self.roles)
