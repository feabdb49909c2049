"""`frames`: the general form, a folder a clip with its frames and one folder a kind of annotation.

`CLIP/frames/NAME.jpg` and `CLIP/ANNOTATION/NAME.png` belong together by stem, never by sort order. Any other form can
be brought into this one by links.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.base import AnnotatedFrame, Reader, windows
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.drawing import Draw, check_size, draw_ids, open_image, open_labels
from uvd.sources.matching import Matched, folders, frame_number, sizes

FRAMES = "frames"


class FramesReader(Reader):
    def items(self) -> Iterator[Item]:
        root = self.config.input
        clips = [name for name in folders(root) if (root / name / FRAMES).is_dir()] if root.is_dir() else []
        if not clips:
            raise SourceError(f"no clips below {root}: expected folders CLIP/{FRAMES} and CLIP/ANNOTATION")
        for clip in clips:
            kinds = [name for name in folders(root / clip) if name != FRAMES]
            for kind in kinds:
                yield from self._clip(clip, kind)
            if not kinds:
                yield refused(clip, Reason.NO_ANNOTATION, "no annotation folder")

    def _clip(self, clip: str, kind: str) -> Iterator[Item]:
        matched = Matched(self.config.input, f"{clip}/{FRAMES}", f"{clip}/{kind}")
        for stems in windows(matched.stems, self.config.stride):
            pairs = [[matched.frames[stem], matched.annotations[stem]] for stem in stems]
            size = sizes(self.config.input, [path for pair in pairs for path in pair])
            yield {"origin": pairs[0][0], "role": kind, "clip": clip, "pairs": pairs, "bytes": size}
        yield from matched.refused

    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        for frame, annotation in item["pairs"]:
            pixels, size = open_image(self.config, frame)
            draw = self._annotation(annotation, pixels)
            yield AnnotatedFrame(pixels, size, frame, annotation, frame_number(frame), draw)

    def _annotation(self, path: str, pixels: NDArray[np.uint8]) -> Draw:
        if self.config.annotation == "colours":
            colours, _ = open_image(self.config, path)
            check_size(colours, path, pixels)
            return _draw_colours(colours)
        ids = open_labels(self.config, path)
        check_size(ids, path, pixels)
        return draw_ids(ids)


def _draw_colours(colours: NDArray[np.uint8]) -> Draw:
    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        # What black means in a picture of the user's is not known, so nothing is taken for empty.
        return transform.labels(colours).astype(np.uint8), True

    return draw
