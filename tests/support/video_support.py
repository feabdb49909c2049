"""Video clips encoded by the tests, small, each frame with its number in it; and running the `video` source on them.

The number is in 10 black or white blocks in the lower part of the central square, so that it survives every codec, a
crop and scaling. Above them a coloured bar moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.demo.encoding import ordinary_scheduling
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reject, Seeds
from uvd.sources import video
from uvd.sources.video import VideoConfig, VideoSource
from uvd.sources.video_decoder import VideoDecoder, VideoLimits

Pixels = NDArray[np.uint8]
SIZE = (128, 96)
ROWS, COLUMNS = 2, 5


def _blocks(width: int, height: int) -> list[tuple[slice, slice]]:
    """Where the bits of the number are, the lowest first."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    block_w, block_h = side / COLUMNS, 0.3 * side
    return [
        (
            slice(round(top + 0.4 * side + row * block_h), round(top + 0.4 * side + (row + 1) * block_h)),
            slice(round(left + column * block_w), round(left + (column + 1) * block_w)),
        )
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


def numbered(number: int, size: tuple[int, int] = SIZE) -> Pixels:
    """`(H, W, 3)` uint8 RGB that shows its number, 0 to 1023."""
    width, height = size
    pixels = np.full((height, width, 3), (90, 110, 130), np.uint8)
    place = (number * 5) % width
    pixels[: height // 3, place : place + width // 4] = (200, 60, 40)
    for bit, block in enumerate(_blocks(width, height)):
        pixels[block] = 235 if number >> bit & 1 else 20
    return pixels


def shown_number(pixels: Pixels) -> int:
    """The number that a picture shows; fails on a mixture of two frames."""
    height, width = pixels.shape[:2]
    number = 0
    for bit, (rows, columns) in enumerate(_blocks(width, height)):
        block = pixels[rows, columns]
        inset_y, inset_x = block.shape[0] // 4, block.shape[1] // 4
        level = block[inset_y : block.shape[0] - inset_y, inset_x : block.shape[1] - inset_x].mean()
        assert level < 80 or level > 175, f"bit {bit} is {level:.0f}"
        number |= int(level > 128) << bit
    return number


def shown_numbers(example: Example) -> list[int]:
    return [shown_number(picture.pixels) for picture in example.pictures]


def write_clip(
    path: Path,
    frames: int = 60,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = SIZE,
    rate: int = 25,
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    picture: Callable[[int], Pixels | av.VideoFrame] | None = None,
    stamps_ms: Sequence[int] | None = None,
    aspect: tuple[int, int] | None = None,
    turned: int = 0,
) -> Path:
    """Encodes a clip.

    Args:
        picture: frame k as `(H, W, 3)` RGB, or as a frame in the encoder's own format; by default `numbered`.
        stamps_ms: when each frame is shown; by default `rate` a second.
        aspect: of a pixel.
        turned: counter-clockwise degrees in the display matrix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ordinary_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        stream.gop_size = gop
        if codec not in ("libx264", "libx265", "libsvtav1"):
            stream.bit_rate = 3_000_000
        if stamps_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.sample_aspect_ratio = Fraction(*aspect)
        if turned:
            stream.set_display_rotation(turned)
        for number in range(frames):
            shown = numbered(number, size) if picture is None else picture(number)
            frame = shown if isinstance(shown, av.VideoFrame) else av.VideoFrame.from_ndarray(shown, format="rgb24")
            frame.pts = number if stamps_ms is None else stamps_ms[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def box(kind: bytes, body: bytes = b"") -> bytes:
    """A box of an MP4 file."""
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def media_data(clip: bytes) -> tuple[int, int]:
    """Where the first and only `mdat` of an MP4 file begins and ends, without its header."""
    start = clip.index(b"mdat") + 4
    return start, start - 8 + int.from_bytes(clip[start - 8 : start - 4], "big")


class KeptDecoder(VideoDecoder):
    """One that outlives its source: a start of its child costs 0.5 s."""

    def close(self) -> None:
        """Not yet: see `end`."""

    def end(self) -> None:
        super().close()


@contextmanager
def kept_decoders() -> Iterator[None]:
    """Sources made inside share the child that decodes, if they have the same limits."""
    kept: dict[VideoLimits, KeptDecoder] = {}

    def decoder(limits: VideoLimits) -> KeptDecoder:
        if limits not in kept:
            kept[limits] = KeptDecoder(limits)
        return kept[limits]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "VideoDecoder", decoder)
        try:
            yield
        finally:
            for one in kept.values():
                one.end()


def video_config(place: Path | str, **more: Any) -> VideoConfig:
    return VideoConfig.model_validate({"dataset": "d", "input": place, "strides": [1, 2, 3]} | more)


def planned(place: Path | str, **more: Any) -> list[dict[str, Any]]:
    """The items of all units; checks their numbers."""
    units = list(VideoSource(video_config(place, **more)).plan())
    assert [unit.shard for unit in units] == list(range(len(units)))
    assert all(unit.num_inputs == len(unit.payload["items"]) for unit in units)
    return [dict(item) for unit in units for item in unit.payload["items"]]


def put(path: Path, content: bytes = b"") -> Path:
    """Writes a file, and the folders to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(config: VideoConfig) -> tuple[list[Example], list[Reject]]:
    """Examples and rejects; checks that each planned input is in one of them."""
    source = VideoSource(config)
    examples: list[Example] = []
    rejects: list[Reject] = []
    for unit in source.plan():
        found = list(source.read(unit, Seeds(0, (unit.shard,))))
        mine = [item for item in found if isinstance(item, Example)]
        refused = [item for item in found if isinstance(item, Reject)]
        assert {index for example in mine for index in example.inputs} | {reject.input for reject in refused} == {
            *range(unit.num_inputs)
        }
        assert len({reject.input for reject in refused}) == len(refused)
        examples += mine
        rejects += refused
    return examples, rejects


def ingest(config: VideoConfig, out: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Makes all shards in this process: the total counts and the rows of the rejects."""
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    total: dict[str, int] = {}
    for job in plan(dataset, config, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
        total = {name: total.get(name, 0) + count for name, count in counts.items()}
    assert verify(dataset, deep=True).problems == []
    shards = dataset.shards(f"sequences/{config.folder}")
    return total, [row for shard in shards for row in dataset.rejects(shard).to_pylist()]


def numbers(example: Example) -> list[int | None]:
    """Frame numbers of a window, as the example says."""
    return [picture.index for picture in example.pictures]
