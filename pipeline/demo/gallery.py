"""The documentation's gallery: one row a kind of visual sequence, from the demo's dataset, small enough to commit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.find import find_sequence
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.sheet import contact_sheet, save_png
from uvd.manifests.stats import query
from uvd.sequences import MAX_IMAGES

SIDE = 104
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


def draw_gallery(dataset: Dataset, out: Path) -> Path:
    """Draws `sequences.png` into `out`.

    Raises:
        DatasetError: if the dataset lacks one of the rows: it is not the demo's.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for label, condition in ROWS:
        row = _row(dataset, condition)
        pictures += row
        labels += [label, *[""] * (MAX_IMAGES - 1)]
    path = out / "sequences.png"
    save_png(contact_sheet(pictures, labels, columns=MAX_IMAGES), str(path))
    return path


def _row(dataset: Dataset, condition: str) -> list[NDArray[np.uint8]]:
    """16 small pictures of the sequence; what it lacks is blank."""
    sql = f"select key from sequences where {condition} order by num_images desc, key limit 1"
    found = query(dataset, sql).to_pylist()
    if not found:
        raise DatasetError(f"{dataset.uri} has no sequence where {condition}; make it with `make demo`")
    shard, row = find_sequence(dataset, found[0]["key"])
    pictures = read_sequence(dataset, shard, row).pictures()
    small = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for picture in pictures]
    blank = np.full((SIDE, SIDE, 3), 250, np.uint8)
    return small + [blank] * (MAX_IMAGES - len(small))
