"""In which form a map lies in its file: label ids, depth, normals, a picture; with the conventions of data sets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uvd.renderers.palette import PALETTE_SIZE
from uvd.sources.name_patterns import NamePattern

Form = Literal["labels", "colours", "depth", "disparity", "normals", "edges", "picture"]
Encoding = Literal["ids", "rgb24", "ade20k"]
Convention = Literal["opengl", "directx", "opencv"]

_FORMS: dict[str, tuple[Form, ...]] = {
    "void": ("labels",),
    "add": ("labels",),
    "encoding": ("labels",),
    "foreground": ("labels",),
    "scale": ("depth",),
    "near": ("depth",),
    "far": ("depth",),
    "invalid": ("depth", "disparity"),
    "convention": ("normals",),
    "invert": ("edges",),
}
"""Settings that mean something for some forms only."""


class MapForm(BaseModel):
    """One role of kind `files`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: str
    """Pattern of the maps' paths below the input, with the photos' `*` in the same order."""
    form: Form
    """`labels`: a class id a pixel → the palette's colours. `colours`: label colours, taken as they are. `depth`:
    distances, `disparity`: inverse distances → grey, near is bright. `normals`: vectors → RGB. `edges`: one channel.
    `picture`: a photo in its own right, such as the clean one of a restoration pair, or the right one of a stereo pair.
    """
    optional: bool = False
    """Whether an input without any such file will do."""

    void: tuple[int, ...] = ()
    """labels: ids as stored that mean "no class" and become black, such as 255. Others keep their place by `add`."""
    add: int = Field(0, ge=0, lt=PALETTE_SIZE)
    """labels: added to every id that is not void. 0 is void where nothing is added; 1 makes it the first class."""
    encoding: Encoding = "ids"
    """labels: `ids` in one channel, 8 or 16 bits or palette; `rgb24`: R + 256 G + 65536 B (COCO panoptic); `ade20k`:
    R // 10 * 256 + G (the full ADE20K)."""
    foreground: bool = False
    """labels: a white mask on black for each class, in sequences of one class (the form of Pascal-5i)."""

    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """depth: stored value of one metre: 256 in KITTI, 1000 where millimetres are stored, 5000 in TUM RGB-D. Matters for
    `near` and `far` only: each picture is scaled from its own nearest to its own farthest point."""
    near: float | None = Field(None, gt=0, allow_inf_nan=False)
    """depth: metres; what is nearer counts as this far."""
    far: float | None = Field(None, gt=0, allow_inf_nan=False)
    """depth: metres; what is farther counts as this far."""
    invalid: tuple[float, ...] | None = None
    """depth, disparity: stored values that mean "not known" and become black. By default 0 in files of integers, and
    none in files of floats; NaN, infinity and distances of 0 or less are never known."""

    convention: Convention = "opengl"
    """normals: axes of the stored vectors. All have x to the right; `opengl`: y up, z towards the viewer; `directx`: y
    down, z towards the viewer; `opencv`: y down, z away from the viewer. Pictures are `opengl`."""

    invert: bool = False
    """edges: stored black on white; pictures are white on black."""

    @field_validator("files")
    @classmethod
    def _readable(cls, files: str) -> str:
        NamePattern(files)
        return files

    @model_validator(mode="after")
    def _settings_of_this_form(self) -> Self:
        """Refuses what would be ignored."""
        for name, forms in _FORMS.items():
            if self.form not in forms and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of form {' or '.join(forms)}, not of {self.form}")
        if self.near is not None and self.far is not None and self.near >= self.far:
            raise ValueError(f"near ({self.near:g} m) must be less than far ({self.far:g} m)")
        return self
