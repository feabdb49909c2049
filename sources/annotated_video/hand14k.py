"""`hand14k`: hand masks of EGTEA Gaze+, `Images/NAME.jpg` and `Masks/NAME.png` in two flat folders.

NAME is the clip's name and a frame number at its end, such as `OP01-R01-PastaSalad_000123`; a clip's frames go in the
order of their numbers, however far apart: they are samples. Masks are 0 and 1, or 0 and 255, and drawn in white;
`hands: palette` takes ids (left, right) in the palette's colours. That is a setting and not guessed from a mask, so
that a frame with one hand looks like its neighbours with two.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.segmentation import render_foreground
from uvd.sequences import Reason, Transform
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated_video.base import AnnotatedFrame, Reader, windows
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.drawing import Draw, Labels, check_size, draw_ids, open_image, open_labels
from uvd.sources.matching import MAX_DIGITS, Matched, need_folders, sizes

IMAGES, MASKS = "Images", "Masks"
ROLE = "mask"
_NAME = re.compile(r"(?P<clip>.*?)[-_. ]*?[Ff]?0*(?P<number>[0-9]+)")
"""Of a stem; the number is its last run of digits, without leading zeros and an `F` before it."""


class Hand14kReader(Reader):
    def items(self) -> Iterator[Item]:
        root = self.config.input
        need_folders(root, f"{IMAGES}/NAME.jpg and {MASKS}/NAME.png", IMAGES, MASKS)
        matched = Matched(root, IMAGES, MASKS)
        if not matched.stems and not matched.refused:
            raise SourceError(f"no images in {root / IMAGES} and {root / MASKS}")
        clips: dict[str, list[tuple[int, str]]] = defaultdict(list)
        nameless = []
        for stem in matched.stems:
            named = clip_and_number(stem)
            if named is None:
                nameless.append(stem)
            else:
                clips[named[0]].append((named[1], stem))
        for clip in sorted(clips):
            for window in windows(sorted(clips[clip]), self.config.stride):
                paths = [path for _, stem in window for path in (matched.frames[stem], matched.annotations[stem])]
                yield {
                    "origin": paths[0],
                    "role": ROLE,
                    "clip": clip,
                    "numbers": [number for number, _ in window],
                    "pairs": [paths[place : place + 2] for place in range(0, len(paths), 2)],
                    "bytes": sizes(root, paths),
                }
        for stem in nameless:
            yield refused(matched.frames[stem], Reason.BAD_ANNOTATION, "the name does not end in a frame number")
        yield from matched.refused

    def frames(self, item: Item) -> Iterator[AnnotatedFrame | RejectedInput]:
        for (frame, mask), number in zip(item["pairs"], item["numbers"], strict=True):
            pixels, size = open_image(self.config, frame)
            ids = open_labels(self.config, mask)
            check_size(ids, mask, pixels)
            draw = draw_ids(ids) if self.config.hands == "palette" else draw_white(ids, mask)
            yield AnnotatedFrame(pixels, size, frame, mask, number, draw)


def clip_and_number(stem: str) -> tuple[str, int] | None:
    """The clip and the frame number in the name of a frame; None if it has no number at its end.

    >>> clip_and_number("OP01-R01-PastaSalad_000123")
    ('OP01-R01-PastaSalad', 123)
    """
    found = _NAME.fullmatch(stem)
    if found is None or len(found["number"]) > MAX_DIGITS:
        return None
    return found["clip"], int(found["number"])


def draw_white(ids: Labels, path: str) -> Draw:
    """White where a mask is not 0.

    Raises:
        RejectedInput: unless it is of 0 and 1, or of 0 and 255.
    """
    present = set(np.unique(ids).tolist())
    if not (present <= {0, 1} or present <= {0, 255}):
        shown = ", ".join(map(str, sorted(present)[:5]))
        detail = f"{path} holds {shown}: neither 0 and 1 nor 0 and 255 (ids of hands need hands=palette)"
        raise RejectedInput(Reason.BAD_ANNOTATION, detail)
    return draw_mask(ids != 0)


def draw_mask(mask: NDArray[np.bool_]) -> Draw:
    def draw(transform: Transform, _: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        foreground = transform.labels(mask).astype(np.bool_)
        return render_foreground(foreground), bool(foreground.any())

    return draw
