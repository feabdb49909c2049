"""`vipseg`: frames `imgs/VIDEO/NAME.jpg` (or `images/`) and panoptic masks, in either of VIPSeg's two forms.

As published: `panomasks/VIDEO/NAME.png` of one channel, 0 void, below 125 the class of a stuff region, else
100 * class + instance of a thing. Converted: `panomasksRGB/VIDEO/NAME.png`, whose colours are segment ids, with
`panoptic_gt_VIPSeg_*.json`; it is taken if both are there. A track (segment) has its place among the sorted ids of the
whole clip for its colour: the same in all windows, and no two alike. Published masks are each read twice for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.base import AnnotatedFrame, Reader, windows
from uvd.sources.annotated_video.vipseg_json import SPLITS, Panoptic, json_files, read_panoptic
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.drawing import Labels, check_size, draw_with, open_image, open_labels
from uvd.sources.matching import Matched, files_by_stem, folders, frame_number, listed_lines, need_folders, sizes

ROLE = "segmentation"
FRAMES, MASKS, CONVERTED = ("imgs", "images"), "panomasks", "panomasksRGB"
FORM = "imgs/VIDEO/NAME.jpg, and panomasks/VIDEO/NAME.png or panomasksRGB/VIDEO/NAME.png with panoptic_gt_VIPSeg*.json"
STUFF_BELOW = 125
CLASSES, INSTANCES = 124, 100
MAX_VALUE = CLASSES * INSTANCES + INSTANCES - 1
MAX_LIST_BYTES = 16 << 20


class VipsegReader(Reader):
    _tracks: tuple[str, dict[int, int]] = "", {}
    """Of the last clip of published masks: its folder, id → place in the palette."""

    def items(self) -> Iterator[Item]:
        root = self.config.input
        need_folders(root, FORM)
        there = [name for name in FRAMES if (root / name).is_dir()]
        if len(there) != 1:
            raise SourceError(f"{root} holds {' and '.join(there) or 'neither imgs nor images'}: expected {FORM}")
        panoptic = self._panoptic()
        masks = MASKS if panoptic is None else CONVERTED
        listed = _read_lists(root)
        frame_clips, mask_clips = folders(root / there[0]), folders(root / masks)
        both = sorted(set(frame_clips) & set(mask_clips))
        for video in both:
            split = listed.get(video) or (panoptic.splits.get(video) if panoptic else None)
            for item in self._clip(f"{there[0]}/{video}", f"{masks}/{video}", panoptic):
                yield item if "refused" in item or not split else {**item, "split": split}
        for video in sorted(set(frame_clips) - set(mask_clips)):
            yield refused(f"{there[0]}/{video}", Reason.NO_ANNOTATION, f"no folder of this name in {masks}")
        for video in sorted(set(mask_clips) - set(frame_clips)):
            yield refused(f"{masks}/{video}", Reason.MISSING, f"no folder of this name in {there[0]}")
        named = {*listed, *(panoptic.masks if panoptic else ())}
        for video in sorted(named - set(frame_clips) - set(mask_clips)):
            yield refused(f"{there[0]}/{video}", Reason.MISSING, "a list names this video, and it is not there")

    def _panoptic(self) -> Panoptic | None:
        """The JSON of the converted form, or None for masks as published."""
        root = self.config.input
        files = json_files(root)
        if (root / CONVERTED).is_dir() and files:
            return read_panoptic(files)
        if not (root / MASKS).is_dir():
            missing = "no panoptic_gt_VIPSeg*.json beside panomasksRGB" if (root / CONVERTED).is_dir() else "no masks"
            raise SourceError(f"{root}: {missing}: expected {FORM}")
        return None

    def _clip(self, frames: str, masks: str, panoptic: Panoptic | None) -> Iterator[Item]:
        root = self.config.input
        video = Path(frames).name
        matched = Matched(root, frames, masks)
        stems = matched.stems
        described = {} if panoptic is None else panoptic.masks.get(video, {})
        if panoptic is not None:
            stems = [stem for stem in matched.stems if stem in described]
        state: dict[str, Any] = {"clip": video, "role": ROLE}
        if panoptic is None:
            # All masks of the clip decide on its colours, so all of them are part of what identifies a window.
            names = sorted(matched.annotations.values())
            listing = json.dumps([names, sizes(root, names)]).encode()
            state["clip_masks"] = [masks, blake2b(listing, digest_size=16).hexdigest()]
        for window in windows(stems, self.config.stride):
            pairs = [[matched.frames[stem], matched.annotations[stem]] for stem in window]
            item = {"origin": pairs[0][0], **state, "pairs": pairs}
            item["bytes"] = sizes(root, [path for pair in pairs for path in pair])
            if panoptic is not None:
                item["colours"] = self._colours(panoptic, video, window)
            yield item
        yield from matched.refused
        if panoptic is not None:
            yield from _undescribed(matched, described, masks)

    def _colours(self, panoptic: Panoptic, video: str, stems: list[str]) -> list[list[list[int]]]:
        """For each mask the places in the palette of its segments: [id, place] each."""
        masks = panoptic.masks[video]
        if self.config.colour_by == "class":
            place = {category: number for number, category in enumerate(panoptic.categories, start=1)}
            return [[[i, place[category]] for i, category in sorted(masks[stem].items())] for stem in stems]
        tracks = _places({identity for segments in masks.values() for identity in segments})
        return [[[identity, tracks[identity]] for identity in sorted(masks[stem])] for stem in stems]

    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        for number, (frame, mask) in enumerate(item["pairs"]):
            pixels, size = open_image(self.config, frame)
            if "colours" in item:
                ids = self._segment_ids(mask)
                colours = {identity: place for identity, place in item["colours"][number]}
            else:
                ids = self._published_ids(mask)
                colours = self._published_colours(item["clip_masks"][0], ids)
            check_size(ids, mask, pixels)
            yield AnnotatedFrame(pixels, size, frame, mask, frame_number(frame), draw_with(ids, colours, mask))

    def _segment_ids(self, path: str) -> Labels:
        colours, _ = open_image(self.config, path)
        return colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)

    def _published_ids(self, path: str) -> Labels:
        ids = open_labels(self.config, path)
        if int(ids.max()) > MAX_VALUE or int(ids.min()) < 0:
            worst = int(ids.max()) if int(ids.max()) > MAX_VALUE else int(ids.min())
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{path}: value {worst} is no class of {CLASSES}")
        return ids

    def _published_colours(self, folder: str, ids: Labels) -> dict[int, int]:
        if self.config.colour_by == "class":
            present = np.flatnonzero(np.bincount(ids.ravel())).tolist()
            return {value: value if value < STUFF_BELOW else value // INSTANCES for value in present if value}
        if self._tracks[0] != folder:
            self._tracks = folder, _places(self._clip_values(folder))
        return self._tracks[1]

    def _clip_values(self, folder: str) -> set[int]:
        """Values of all masks of a clip; one that cannot be read is its own window's affair, and adds none."""
        found: set[int] = set()
        for name in files_by_stem(self.config.input / folder)[0].values():
            try:
                ids = self._published_ids(f"{folder}/{name}")
            except RejectedInput:
                continue
            found.update(np.flatnonzero(np.bincount(ids.ravel())).tolist())
        return found

    def close(self) -> None:
        self._tracks = "", {}


def _places(ids: set[int]) -> dict[int, int]:
    """Place of each id in the palette: its place among the sorted ids, from 1; 0 is void."""
    return {identity: place for place, identity in enumerate(sorted(ids - {0}), start=1)}


def _undescribed(matched: Matched, described: dict[str, dict[int, int]], masks: str) -> Iterator[Item]:
    """Pairs that the JSON does not describe, and masks that it describes and that are not there."""
    for stem in matched.stems:
        if stem not in described:
            yield refused(matched.frames[stem], Reason.NO_ANNOTATION, "the JSON has no segments of this mask")
    for stem in sorted(described.keys() - matched.annotations.keys() - matched.frames.keys()):
        yield refused(f"{masks}/{stem}.png", Reason.MISSING, "the JSON describes this mask, and it is not there")


def _read_lists(root: Path) -> dict[str, str]:
    """Video → split, by `train.txt`, `val.txt` and `test.txt` where they are there.

    Raises:
        SourceError: if a list cannot be read, or a video is in two of them.
    """
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = root / f"{split}.txt"
        if not path.is_file():
            continue
        for line in listed_lines(path, MAX_LIST_BYTES):
            video = line.strip()
            if video and splits.setdefault(video, split) != split:
                raise SourceError(f"{path}: video {video!r} is in {splits[video]}.txt too")
    return splits
