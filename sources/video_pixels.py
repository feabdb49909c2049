"""Decoded frames → 8-bit RGB as they are shown: turned, square pixels, one field of two, HDR mapped to BT.709.

One pass of swscale goes from the codec's format to RGB at a small size at once: 1 ms at 1080p, where RGB at full size
and then an area resize takes several times that.
"""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput

Size = tuple[int, int]
_reformatter = VideoReformatter()
"""Keeps what it prepared for the last frame; for HDR that takes 2 seconds."""

MAX_FRAME_PIXELS = 7680 * 4320
HD_LINES = 720
"""Frames at least this high that do not say their matrix are taken for BT.709, lower ones for BT.601, as players do."""
_HDR_CURVES = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


def to_rgb(frame: av.VideoFrame, short_side: int, aspect: float = 1.0) -> NDArray[np.uint8]:
    """A decoded frame as an 8-bit picture as it is shown: turned, with square pixels, one field if interlaced.

    HDR (PQ and HLG curves) is mapped to BT.709 by swscale. Frames are averaged down to `short_side`, never enlarged.

    Args:
        aspect: width of a pixel by its height.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        RejectedInput: frames too large.
    """
    check_pixels(frame.width, frame.height)
    width, height = target_size(frame.width, frame.height, aspect, short_side)
    kept = (frame.width, frame.height) if frame.interlaced_frame else (width, height)
    options: dict[str, Any] = {}
    if frame.color_trc in _HDR_CURVES:
        options = {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}
    elif frame.colorspace not in _KNOWN_MATRICES and min(frame.width, frame.height) >= HD_LINES:
        options = {"src_colorspace": Colorspace.ITU709}
    flags = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    # Planar, because swscale has no fast way to scale into packed RGB: half the time.
    scaled = _reformatter.reformat(frame, width=kept[0], height=kept[1], format="gbrp", interpolation=flags, **options)
    green, blue, red = (_plane(plane) for plane in scaled.planes)
    pixels = cv2.merge([red, green, blue])
    if frame.interlaced_frame:
        # One field is one moment; the other would be a comb where things move.
        pixels = cv2.resize(pixels[::2], (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


def _plane(plane: Any) -> NDArray[np.uint8]:
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return np.ascontiguousarray(rows[:, : plane.width])


_KNOWN_MATRICES = frozenset({1, 4, 5, 6, 7, 9, 10})
"""Values of ISO/IEC 23091-2 MatrixCoefficients that name a YCbCr matrix."""


def target_size(width: int, height: int, aspect: float, short_side: int) -> tuple[int, int]:
    """(width, height) with square pixels and a short side of at most `short_side`."""
    shown_w, shown_h = (width * aspect, float(height)) if aspect >= 1 else (float(width), height / aspect)
    scale = min(1.0, short_side / min(shown_w, shown_h))
    return max(1, round(shown_w * scale)), max(1, round(shown_h * scale))


def pixel_aspect(stream: Any) -> float:
    """Width of a pixel by its height, 1 if the stream does not say or says something absurd."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 0.25 <= ratio <= 4 else 1.0


def check_pixels(width: int, height: int) -> None:
    """
    Raises:
        RejectedInput: for frames over the limit.
    """
    if width * height > MAX_FRAME_PIXELS:
        raise RejectedInput(Reason.BOMB, f"frames of {width}x{height}, over {MAX_FRAME_PIXELS} pixels")
