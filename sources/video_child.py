"""What the isolated child does for `video_decoder`: one request, one answer; see `isolation`.

Requests say everything, so any child can answer any of them. The child keeps the file of the last request for frames
open, and goes on where it was if the next one asks for what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.sources import video_stream
from uvd.sources.video_stream import Size, Wanted

ANSWER_BYTES = 8 << 20
"""Pixels an answer, and one frame."""

Answer = tuple[dict[str, Any], list[NDArray[Any]]]


def handle(request: dict[str, Any]) -> Answer:
    """Answers one request: `duration`, `index`, `frames` or `cuts`.

    Raises:
        RejectedInput: as the functions of `video_stream`.
    """
    return _HANDLERS[request["operation"]](request)


def _duration(request: dict[str, Any]) -> Answer:
    return {"seconds": video_stream.duration_s(request["path"])}, []


def _index(request: dict[str, Any]) -> Answer:
    index = video_stream.read_index(request["path"], request["start_s"], request["end_s"])
    return {"counted": index.counted, "first": index.first, "lacking": index.lacking}, [
        index.times_s,
        index.stamps,
        index.keys,
    ]


def _cuts(request: dict[str, Any]) -> Answer:
    from uvd.sources.scene_cuts import find_cuts  # few ask for it, and it imports SceneDetect

    wanted = Wanted(**request["wanted"])
    return {"cuts": find_cuts(request["path"], wanted, request["threshold"])}, []


class _Reading:
    """Frames of the last request, and how many of them were handed out."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.about = {key: value for key, value in request.items() if key != "begin"}
        self.given = 0
        self.frames: Iterator[tuple[int, Size, NDArray[np.uint8]]] = video_stream.decode_frames(
            request["path"], Wanted(**request["wanted"]), request["short_side"]
        )


_reading: _Reading | None = None


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The centred square, as `sequences.geometry.fit` cuts it."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _frames(request: dict[str, Any]) -> Answer:
    global _reading
    begin = request["begin"]
    about = {key: value for key, value in request.items() if key != "begin"}
    if _reading is None or _reading.about != about or _reading.given != begin:
        _reading = _Reading(request)
    places, sizes, pictures, held = [], [], [], 0
    for place, size, pixels in _reading.frames:
        _reading.given += 1
        if _reading.given <= begin:
            continue
        if request["square"]:
            pixels = _square(pixels)
        places.append(place)
        sizes.append(size)
        pictures.append(pixels)
        held += pixels.nbytes
        if held >= ANSWER_BYTES:
            return {"places": places, "sizes": sizes, "more": True}, list(pictures)
    _reading = None
    return {"places": places, "sizes": sizes, "more": False}, list(pictures)


_HANDLERS = {"duration": _duration, "index": _index, "frames": _frames, "cuts": _cuts}
