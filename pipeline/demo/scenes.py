"""Annotated inputs with true annotations: people estimated by BlazePose, 3D objects pasted over photos by their alpha.

Rendered objects have exact boxes and masks, because the renderer says which pixels they cover; people's keypoints and
masks come from an estimator with real weights. `published_images` writes scenes in the forms that sources read; clips
are written as frame folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.pipeline.demo.published_images import PERSON, Scene, SceneObject, save
from uvd.renderers.estimators.blazepose import BlazePose, Person
from uvd.renderers.multiview import orbit, render_object
from uvd.renderers.multiview_files import load_object
from uvd.renderers.multiview_scene import UpAxis
from uvd.sequences import Seeds
from uvd.sources.decode import decode_image
from uvd.sources.video_decoder import read_frames

SEEDS = Seeds(0, ("demo",))
CLIP = "Sports2D/Demo/demo.mp4"
ASTRONAUT = "skimage/data/astronaut.png"
MODELS = "gradio/media_assets/models3d"
OBJECTS = ("Bunny.obj", "Duck.glb", "Fox.gltf", "face.obj", "sofia.stl")
"""Categories 2 to 6, in this order."""
OBJECT_VIEWS = 24
PEOPLE_EVERY, CLIP_EVERY = 6, 4
"""Frames of the walking clip that become annotated images, and annotated frames."""
CLIP_HEIGHT = 512
SCENES = 64
SCENE_SIDE = 512
MAX_OBJECTS = 3
MAX_OBJECT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """A view of an object: `(256, 256, 3)` uint8 RGB and `(256, 256)` uint8 coverage."""

    pixels: NDArray[np.uint8]
    coverage: NDArray[np.uint8]


def annotated_scenes(cache: Path, backgrounds: list[NDArray[np.uint8]]) -> Iterator[Scene]:
    """Photos of people, estimated, and objects composed over photos, exact."""
    pose = BlazePose(cache)
    for name, pixels in _people(cache):
        yield Scene(name, pixels, tuple(_person(person) for person in reversed(pose.estimate(pixels))))
    cutouts = {name: object_cutouts(cache / MODELS / name) for name in OBJECTS}
    for number in range(SCENES):
        yield compose_scene(cutouts, backgrounds, number)


def _people(cache: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    yield "astronaut", decode_image((cache / ASTRONAUT).read_bytes())[0]
    for number, pixels in read_frames(cache / CLIP, list(range(0, 230, PEOPLE_EVERY))):
        yield f"walk-{number:04d}", pixels


def _person(person: Person) -> SceneObject:
    visible = person.keypoints[:, 2] >= 0.5
    keypoints = np.where(visible[:, None], np.column_stack([person.keypoints[:, :2], np.full(17, 2)]), 0)
    assert person.mask is not None
    return SceneObject(PERSON, person.mask, keypoints)


def object_cutouts(path: Path) -> list[Cutout]:
    """24 views of an object around one seeded orbit, with coverage as alpha."""
    cameras = orbit(SEEDS.generator("orbit", path.name), views=OBJECT_VIEWS)
    linear = path.suffix in (".glb", ".gltf")
    up: UpAxis = "z" if path.suffix == ".stl" else "y"
    views = render_object(
        load_object(path, MAX_OBJECT_BYTES), cameras, background=(0, 0, 0), up=up, linear_colors=linear
    )
    return [Cutout(pixels, coverage) for pixels, coverage in zip(views.pixels, views.coverage, strict=True)]


def compose_scene(cutouts: dict[str, list[Cutout]], backgrounds: list[NDArray[np.uint8]], number: int) -> Scene:
    """One to three objects over a photo; later ones hide earlier ones, in picture and masks alike."""
    rng = SEEDS.generator("scene", number)
    scene = _square(backgrounds[int(rng.integers(len(backgrounds)))])
    visible: list[tuple[int, NDArray[np.bool_]]] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        kind = int(rng.integers(len(OBJECTS)))
        cutout = cutouts[OBJECTS[kind]][int(rng.integers(OBJECT_VIEWS))]
        side = int(rng.integers(160, 340))
        left, top = rng.integers(0, SCENE_SIDE - side, 2)
        mask = paste(scene, cutout, int(left), int(top), side)
        visible = [(category, earlier & ~mask) for category, earlier in visible]
        visible.append((PERSON + 1 + kind, mask))
    objects = tuple(SceneObject(category, mask) for category, mask in visible if mask.any())
    return Scene(f"scene-{number:03d}", scene, objects)


def paste(scene: NDArray[np.uint8], cutout: Cutout, left: int, top: int, side: int) -> NDArray[np.bool_]:
    """Lays a cut-out over `scene` in place; returns the `(H, W)` bool mask of what it covers by half or more."""
    pixels = cv2.resize(cutout.pixels, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.resize(cutout.coverage, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    place = scene[top : top + side, left : left + side]
    # The views were drawn over black, so their pixels are already multiplied by alpha.
    place[:] = (pixels + place * (1 - alpha[:, :, None])).clip(0, 255).round().astype(np.uint8)
    mask = np.zeros(scene.shape[:2], np.bool_)
    mask[top : top + side, left : left + side] = alpha >= 0.5
    return mask


def lay_out_object_clips(cache: Path, target: Path, backgrounds: list[NDArray[np.uint8]]) -> None:
    """Writes clips as `CLIP/frames` and `CLIP/masks`: a walking person, and objects that turn over a photo."""
    pose = BlazePose(cache)
    for number, pixels in read_frames(cache / CLIP, list(range(0, 230, CLIP_EVERY))):
        width = round(pixels.shape[1] * CLIP_HEIGHT / pixels.shape[0])
        frame = cv2.resize(pixels, (width, CLIP_HEIGHT), interpolation=cv2.INTER_AREA)
        people = [person.mask for person in pose.estimate(frame) if person.mask is not None]
        labels = np.any(people, axis=0) if people else np.zeros(frame.shape[:2], np.bool_)
        _write_annotated(target / "walk", number, frame, labels.astype(np.uint8) * PERSON)
    for kind, name in enumerate(OBJECTS):
        rng = SEEDS.generator("clip", name)
        background = _square(backgrounds[int(rng.integers(len(backgrounds)))])
        start, end = rng.integers(0, SCENE_SIDE - 256, (2, 2))
        for number, cutout in enumerate(object_cutouts(cache / MODELS / name)):
            left, top = np.round(start + (end - start) * number / (OBJECT_VIEWS - 1)).astype(int)
            frame = background.copy()
            mask = paste(frame, cutout, int(left), int(top), 256)
            _write_annotated(target / f"turn-{Path(name).stem.lower()}", number, frame, mask * np.uint8(2 + kind))


def _write_annotated(clip: Path, number: int, frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    save(clip / "frames" / f"{number:04d}.jpg", frame)
    save(clip / "masks" / f"{number:04d}.png", labels)


def _square(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    crop = photo[top : top + side, left : left + side]
    return cv2.resize(crop, (SCENE_SIDE, SCENE_SIDE), interpolation=cv2.INTER_AREA)
