"""Scene cuts by PySceneDetect's content detector: the mean change of hue, saturation and brightness between frames.

Every frame has to be decoded, small: at 1080p this costs about as much again as reading the sequences themselves.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect.common import FrameTimecode
from scenedetect.detectors import ContentDetector
from scenedetect.detectors.content_detector import FlashFilter

from uvd.sources.video_stream import Wanted, decode_frames

SIDE = 96
"""Short side in pixels at which frames are compared; a cut changes all of a picture."""
MIN_SCENE_FRAMES = 5
"""Cuts closer than this to the last one are taken for flashes."""


class CutFinder:
    """Takes frames in order and notes where a new scene begins."""

    def __init__(self, threshold: float) -> None:
        self._detector = ContentDetector(
            threshold=threshold, min_scene_len=MIN_SCENE_FRAMES, filter_mode=FlashFilter.Mode.SUPPRESS
        )
        self.cuts: list[int] = []

    def add(self, place: int, pixels: NDArray[np.uint8]) -> None:
        """Looks at `(H, W, 3)` uint8 RGB, the frame at `place`; all frames have one size."""
        # The rate is of no matter: scenes are measured in frames.
        found = self._detector.process_frame(
            FrameTimecode(place, fps=25.0), cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
        )
        self.cuts += [cut.frame_num for cut in found]


def find_cuts(path: str, wanted: Wanted, threshold: float) -> list[int]:
    """Places in `wanted` at which a new scene begins.

    Raises:
        RejectedInput: as `video_stream.open_video`.
    """
    finder = CutFinder(threshold)
    for place, _, pixels in decode_frames(path, wanted, SIDE):
        finder.add(place, pixels)
    return finder.cuts
