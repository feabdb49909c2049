"""Windows that teach nothing: still pictures and black frames. Costs about 0.1 ms a frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from uvd.sequences import Reason

_SIDE = 64
BLACK_LEVEL, BLACK_SHARE = 25, 0.98
"""A frame is black if this share of its pixels is darker than this grey level: FFmpeg's `blackdetect` has the same."""


class WindowChecks:
    """Checks of one window's frames.

    Args:
        min_motion: mean absolute difference of successive frames in grey levels; less is a still picture.
        max_black_frames: more black frames than this are refused.
    """

    def __init__(self, min_motion: float, max_black_frames: int) -> None:
        self._min_motion, self._max_black = min_motion, max_black_frames

    def verdict(self, frames: Sequence[NDArray[np.uint8]]) -> Reason | None:
        """Why frames, as `small_grey` gives them, are no sequence; None if they are one."""
        grey = np.stack(frames)
        black = ((grey < BLACK_LEVEL).mean(axis=(1, 2)) >= BLACK_SHARE).sum()
        if black > self._max_black:
            return Reason.FILTERED_BLACK
        motion = np.abs(np.diff(grey.astype(np.int16), axis=0)).mean() if len(grey) > 1 else np.inf
        return Reason.FILTERED_STATIC if motion < self._min_motion else None


def small_grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`(64, 64)` uint8 of an `(H, W, 3)` uint8 RGB frame."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
