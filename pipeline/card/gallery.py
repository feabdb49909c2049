"""The pictures of a dataset card: seeded random sequences of each source and layout, as small WebP strips."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvd.manifests.codec import CodecError
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import read_sequence
from uvd.manifests.kept_pictures import pictures_kept, why_not_kept
from uvd.manifests.tar import TarError
from uvd.sequences import Seeds

SIDE = 104
COLUMNS = 8
QUALITY = 72
MAX_STRIPS = 96
SHARDS_READ = 6
"""Of each source: enough to meet its layouts, few enough for any dataset."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A sequence to look at.

    Attributes:
        key, source, dataset, layout, split, origin: as in the manifest; `origin` of its first picture.
        roles: the different ones, in order.
        image: data URI of a WebP.
        width, height: of it, in pixels.
    """

    key: str
    source: str
    dataset: str
    layout: str
    split: str
    roles: tuple[str, ...]
    origin: str
    image: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Gallery:
    """Strips, and the sequences that were drawn by chance and could not be read: `(key, why)`."""

    strips: list[Strip]
    unreadable: list[tuple[str, str]]


def draw_gallery(dataset: Dataset, seed: int, each: int = 4) -> Gallery:
    """
    Args:
        seed: another one shows others.
        each: strips of a source and layout, at most; fewer if there would be more than `MAX_STRIPS`.
    """
    chosen: list[list[tuple[Shard, dict[str, Any]]]] = []
    unreadable: list[tuple[str, str]] = []
    for source in dataset.sources():
        if not pictures_kept(dataset, source):
            unreadable.append((source, str(why_not_kept(source))))
            continue
        chosen += _rows(dataset, source, Seeds(seed, ("card", source)).generator(), each)
    strips: list[Strip] = []
    # The first of each group before the second of any.
    turns = [group[number] for number in range(each) for group in chosen if number < len(group)]
    for shard, row in turns[:MAX_STRIPS]:
        try:
            pictures = list(read_sequence(dataset, shard, row).pictures())
        except (CodecError, TarError) as error:
            unreadable.append((row["key"], str(error)))
            continue
        strips.append(_strip(row, shard.folder.rpartition("/")[2], pictures))
    strips.sort(key=lambda strip: (strip.source, strip.layout, strip.key))
    return Gallery(strips, unreadable)


def _rows(
    dataset: Dataset, source: str, rng: np.random.Generator, each: int
) -> list[list[tuple[Shard, dict[str, Any]]]]:
    """Rows drawn by chance from some shards, by layout."""
    shards = list(dataset.shards(f"sequences/{source}"))
    picked = rng.permutation(len(shards))[:SHARDS_READ]
    by_layout: dict[str, list[tuple[Shard, dict[str, Any]]]] = defaultdict(list)
    for number in sorted(picked.tolist()):
        table = dataset.manifest(shards[number])
        for place in rng.permutation(len(table)).tolist():
            layout = table["layout"][place].as_py()
            if len(by_layout[layout]) < each * SHARDS_READ:
                by_layout[layout].append((shards[number], table.slice(place, 1).to_pylist()[0]))
    groups = []
    for layout in sorted(by_layout):
        rows = by_layout[layout]
        groups.append([rows[place] for place in rng.permutation(len(rows))[:each].tolist()])
    return groups


def _strip(row: dict[str, Any], source: str, pictures: list[NDArray[np.uint8]]) -> Strip:
    columns = min(COLUMNS, len(pictures))
    lines = -(-len(pictures) // columns)
    sheet = np.zeros((lines * SIDE, columns * SIDE, 4), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * SIDE, number % columns * SIDE
        small = cv2.resize(picture, (SIDE - 2, SIDE - 2), interpolation=cv2.INTER_AREA)
        sheet[top : top + SIDE - 2, left : left + SIDE - 2, :3] = small
        sheet[top : top + SIDE - 2, left : left + SIDE - 2, 3] = 255
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "WEBP", quality=QUALITY, method=4)
    return Strip(
        key=row["key"],
        source=source,
        dataset=row["dataset"],
        layout=row["layout"],
        split=row["split"],
        roles=tuple(dict.fromkeys(row["roles"])),
        origin=row["origins"][0],
        image="data:image/webp;base64," + base64.b64encode(out.getvalue()).decode(),
        width=sheet.shape[1],
        height=sheet.shape[0],
    )
