"""Running the `annotated-video` source in a test: planned, read, or all the way into a dataset; and moving objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tests_support import smooth_photo

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.annotated_video.source import AnnotatedVideoConfig, AnnotatedVideoSource

WIDTH, HEIGHT = 200, 150
SIDE = 30
"""Of a square object, in pixels."""


def config(root: Path, **more: Any) -> AnnotatedVideoConfig:
    return AnnotatedVideoConfig.model_validate({"dataset": "d", "input": root} | more)


def read(config: AnnotatedVideoConfig) -> tuple[list[Example], list[Reject]]:
    """Examples and rejects; checks that each planned input is in one of them."""
    source = AnnotatedVideoSource(config)
    examples: list[Example] = []
    rejects: list[Reject] = []
    for unit in source.plan():
        read = list(source.read(unit, Seeds(0, (unit.shard,))))
        used = [index for example in read if isinstance(example, Example) for index in example.inputs]
        refused = [reject.input for reject in read if isinstance(reject, Reject)]
        assert {*used, *refused} == set(range(unit.num_inputs))
        examples += [item for item in read if isinstance(item, Example)]
        rejects += [item for item in read if isinstance(item, Reject)]
    return examples, rejects


def ingest(config: AnnotatedVideoConfig, out: Path) -> tuple[dict[str, int], dict[str, str], list[Any]]:
    """Makes the one shard in this process: counts, reasons by origin, stored sequences."""
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    (job,) = plan(dataset, config, entry["fingerprint"])
    counts = make_shard(job).counts
    assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
    assert verify(dataset, deep=True).problems == []
    (shard,) = dataset.shards(f"sequences/{config.folder}")
    rejects = dataset.rejects(shard).to_pylist()
    reasons = {row["origin"]: row["reason"] for row in rejects}
    assert len(reasons) == len(rejects)
    return counts, reasons, list(read_image_shard(dataset, shard))


def reasons(rejects: list[Reject]) -> dict[str, str]:
    """Reason by origin; no two rejects have the same origin."""
    found = {reject.origin: str(reject.reason) for reject in rejects}
    assert len(found) == len(rejects)
    return found


def numbers(example: Example) -> list[int | None]:
    """Frame numbers of a window."""
    assert [picture.index for picture in example.pictures[::2]] == [picture.index for picture in example.pictures[1::2]]
    return [picture.index for picture in example.pictures[::2]]


def left_of(number: int, track: int) -> tuple[int, int]:
    """Left and top of a square object in frame `number`: tracks move to the right, each in its own row."""
    return 30 + 4 * (number % 25), 20 + 45 * track


def scene(number: int, tracks: tuple[int, ...] = (0, 1)) -> NDArray[np.uint8]:
    """`(150, 200, 3)` uint8 RGB: squares of full red, green or blue that move over a dim photo."""
    picture = cv2.resize(smooth_photo(5), (WIDTH, HEIGHT)) // 3
    for track in tracks:
        left, top = left_of(number, track)
        picture[top : top + SIDE, left : left + SIDE] = 0
        picture[top : top + SIDE, left : left + SIDE, track] = 255
    return picture


def object_mask(number: int, track: int) -> NDArray[np.bool_]:
    """`(150, 200)` bool: where a track's square is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    left, top = left_of(number, track)
    mask[top : top + SIDE, left : left + SIDE] = True
    return mask


def square_in(picture: NDArray[np.uint8], track: int) -> NDArray[np.bool_]:
    """Where a picture of `scene` shows a track's square."""
    others = [channel for channel in range(3) if channel != track]
    return (picture[..., track] > 200) & (picture[..., others].max(axis=-1) < 60)


def colour_on(frame: NDArray[np.uint8], annotation: NDArray[np.uint8], track: int) -> tuple[int, int, int]:
    """The one colour that an annotation has on the inside of a track's square in the frame."""
    inside = cv2.erode(square_in(frame, track).astype(np.uint8), np.ones((9, 9))).astype(bool)
    assert inside.sum() > 500
    (colour,) = set(map(tuple, annotation[inside].tolist()))
    return colour


def write_picture(path: Path, pixels: NDArray) -> None:
    """RGB or a map of ids, without loss but for .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    full_colour = [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    assert cv2.imwrite(str(path), pixels, full_colour if path.suffix == ".jpg" else [])
