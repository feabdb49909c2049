"""What a frame looks like: upright, square pixels, one field, and colours that come back from their YCbCr values.

Frames are made from known RGB by the equations of the standards, not by the library that converts them back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from video_support import Pixels, numbered, shown_number, write_clip

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources.video_decoder import DecodedFrame, VideoDecoder, VideoLimits
from uvd.sources.video_pixels import check_pixels, target_size

BT601 = (0.299, 0.114)
BT709 = (0.2126, 0.0722)
BT2020 = (0.2627, 0.0593)
"""(Kr, Kb) of ITU-R BT.601, BT.709 and BT.2020."""
COLOURS = ((200, 40, 60), (30, 180, 90), (60, 70, 210), (230, 210, 40), (128, 128, 128), (255, 255, 255))
"""One column each."""
LOSSLESS = {"x264-params": "qp=0"}
NO_LOG = "log-level=none:pools=none:frame-threads=1"


@pytest.fixture(scope="module")
def decoder() -> Iterator[VideoDecoder]:
    with VideoDecoder() as decoder:
        yield decoder


def one(decoder: VideoDecoder, path: Path, place: int = 1, short_side: int = 1 << 16) -> DecodedFrame:
    (frame,) = decoder.frames(path, [place], decoder.index(path), short_side)
    return frame


def coded(
    rgb: np.ndarray, kr_kb: tuple[float, float], size: tuple[int, int], depth: int = 8, full: bool = False
) -> av.VideoFrame:
    """A 4:2:0 frame with one column for each colour in `rgb`, `(N, 3)` in 0 to 1, by the equations of ITU-R BT.2100."""
    kr, kb = kr_kb
    luma = rgb @ np.array([kr, 1 - kr - kb, kb])
    blue, red = (rgb[:, 2] - luma) / (2 * (1 - kb)), (rgb[:, 0] - luma) / (2 * (1 - kr))
    step, offset = (2**depth - 1, 0) if full else (219 * 2 ** (depth - 8), 16 * 2 ** (depth - 8))
    chroma = step if full else 224 * 2 ** (depth - 8)
    values = (offset + step * luma, 2 ** (depth - 1) + chroma * blue, 2 ** (depth - 1) + chroma * red)
    width, height = size
    frame = av.VideoFrame(width, height, "yuv420p" if depth == 8 else f"yuv420p{depth}le")
    for plane, columns in zip(frame.planes, values, strict=True):
        row = np.repeat(np.rint(columns), -(-plane.width // len(columns)))[: plane.width]
        rows = np.zeros((plane.height, plane.line_size // (1 if depth == 8 else 2)), np.uint8 if depth == 8 else "<u2")
        rows[:, : plane.width] = row
        plane.update(rows.tobytes())
    return frame


def column_colours(pixels: Pixels, number: int) -> np.ndarray:
    """`(number, 3)` mean colours in the middle of each column."""
    width = pixels.shape[1] / number
    centres = [(column + 0.5) * width for column in range(number)]
    return np.array([pixels[:, round(x - width / 6) : round(x + width / 6)].mean(axis=(0, 1)) for x in centres])


def colour_clip(path: Path, rgb: Any, kr_kb: tuple[float, float], size: tuple[int, int], **more: Any) -> Path:
    depth, full, frames = more.pop("depth", 8), more.pop("full", False), more.pop("frames", 3)
    values = np.array(rgb, float) if np.max(rgb) <= 1 else np.array(rgb) / 255
    return write_clip(path, frames, size=size, picture=lambda _: coded(values, kr_kb, size, depth, full), **more)


@pytest.mark.parametrize(
    ("name", "size", "kr_kb", "tags"),
    [
        ("small frames without a tag are BT.601", (192, 144), BT601, ""),
        ("large frames without a tag are BT.709", (1280, 720), BT709, ""),
        ("small frames that say BT.709", (192, 144), BT709, "colormatrix=bt709"),
        ("large frames that say BT.601", (1280, 720), BT601, "colormatrix=smpte170m"),
        ("all of it BT.709", (192, 144), BT709, "colormatrix=bt709:colorprim=bt709:transfer=bt709"),
        ("a phone upright, without a tag", (720, 1280), BT709, ""),
    ],
)
def test_colours_come_back_by_the_matrix_of_the_video(decoder, tmp_path, name, size, kr_kb, tags):
    options = {"preset": "ultrafast", "x264-params": f"qp=1:{tags}".rstrip(":")}
    clip = colour_clip(tmp_path / "a.mp4", COLOURS, kr_kb, size, options=options)
    frame = one(decoder, clip)
    assert frame.size == size
    assert np.abs(column_colours(frame.pixels, len(COLOURS)) - COLOURS).max() < 4


def test_the_wrong_matrix_would_be_seen(decoder, tmp_path):
    """What the test above tells apart: BT.601 values read as BT.709 are off by far more than its tolerance."""
    clip = colour_clip(
        tmp_path / "a.mp4", COLOURS, BT601, (192, 144), options={"x264-params": "qp=1:colormatrix=bt709"}
    )
    assert np.abs(column_colours(one(decoder, clip).pixels, len(COLOURS)) - COLOURS).max() > 15


def test_full_range_is_not_stretched(decoder, tmp_path):
    clip = colour_clip(
        tmp_path / "a.mp4", COLOURS, BT709, (192, 144), full=True,
        options={"x264-params": "qp=1:fullrange=on:colormatrix=bt709"},
    )  # fmt: skip
    assert np.abs(column_colours(one(decoder, clip).pixels, len(COLOURS)) - COLOURS).max() < 4


def test_10_bit_colours_come_back(decoder, tmp_path):
    clip = colour_clip(
        tmp_path / "a.mp4", COLOURS, BT709, (192, 144), depth=10, codec="libx265", pix_fmt="yuv420p10le",
        options={"preset": "ultrafast", "x265-params": f"{NO_LOG}:qp=4:colormatrix=bt709"},
    )  # fmt: skip
    pixels = one(decoder, clip).pixels
    assert pixels.dtype == np.uint8
    assert np.abs(column_colours(pixels, len(COLOURS)) - COLOURS).max() < 4


def pq(linear: np.ndarray) -> np.ndarray:
    """Light in nits to a signal of 0 to 1, SMPTE ST 2084."""
    power = (np.clip(linear, 0, 10_000) / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(linear: np.ndarray) -> np.ndarray:
    """Light in parts of the peak to a signal of 0 to 1, ITU-R BT.2100 HLG (its OETF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(linear <= 1 / 12, np.sqrt(3 * linear), a * np.log(np.maximum(12 * linear - b, 1e-9)) + c)


BT709_TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear RGB, ITU-R BT.2087."""
SDR = np.array([(0, 0, 0), (0.2, 0.2, 0.2), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)], float)
"""Linear BT.709 light: black, grey, white, and the primaries."""


@pytest.mark.parametrize(("curve", "transfer"), [(lambda light: pq(203 * light), "smpte2084"),
                                                 (lambda light: hlg(0.2646 * light), "arib-std-b67")],
                         ids=["PQ", "HLG"])  # fmt: skip
def test_hdr_is_not_washed_out(tmp_path, curve, transfer):
    """White of a page is 203 nits or 75 % HLG (ITU-R BT.2408); what is in BT.709 keeps its hue and its saturation.

    What maps HDR is prepared once (2 seconds), not for each frame: the limit of time would end it.
    """
    signal = curve(np.clip(SDR @ BT709_TO_2020.T, 0, None))
    tags = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    clip = colour_clip(
        tmp_path / "a.mp4", signal, BT2020, (192, 144), depth=10, frames=30, codec="libx265", pix_fmt="yuv420p10le",
        options={"preset": "ultrafast", "x265-params": f"{NO_LOG}:qp=4:{tags}"},
    )  # fmt: skip
    with VideoDecoder(VideoLimits(timeout_s=20)) as decoder:
        frames = list(decoder.frames(clip, range(30), decoder.index(clip), 96))
    assert len(frames) == 30
    shown = column_colours(frames[-1].pixels, len(SDR))
    assert shown[0].max() < 12
    assert 60 < shown[1].mean() < shown[2].mean() - 50
    assert shown[2].min() > 160
    assert np.ptp(shown[:3], axis=1).max() < 6  # grey stays grey
    for channel, colour in enumerate(shown[3:]):
        others = np.delete(colour, channel)
        assert colour[channel] - others.max() > 110, f"{['red', 'green', 'blue'][channel]} became {colour.round()}"


MATRICES = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}
"""ISO/IEC 14496-12, 6.2.2: (a, b, c, d) with x' = a x + c y and y' = b x + d y, y down: clockwise display rotation."""


def marked(_: int = 0) -> Pixels:
    """The upper left quarter, as stored, is light."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:48, :64] = 240
    return pixels


def light_corner(pixels: Pixels) -> int:
    """Which quarter is light: 0 is the upper left, then clockwise."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    quarters = [pixels[:height, :width], pixels[:height, width:], pixels[height:, width:], pixels[height:, :width]]
    levels = [quarter.mean() for quarter in quarters]
    assert sorted(levels)[2] < 60 < 180 < max(levels)
    return int(np.argmax(levels))


@pytest.mark.parametrize("degrees", MATRICES)
def test_the_rotation_of_phones_is_applied(decoder, tmp_path, degrees):
    clip = write_clip(tmp_path / "a.mp4", 3, picture=marked)
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in MATRICES[degrees])
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(content)
    for short_side in (1 << 16, 48):
        frame = one(decoder, clip, 1, short_side)
        assert light_corner(frame.pixels) == degrees // 90
        assert frame.size == ((96, 128) if degrees % 180 else (128, 96))
        assert frame.pixels.shape[:2] == (frame.size[1] // (2 if short_side == 48 else 1), frame.size[0] // (
            2 if short_side == 48 else 1
        ))  # fmt: skip


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_the_rotation_in_matroska(decoder, tmp_path, turned):
    frame = one(decoder, write_clip(tmp_path / "a.mkv", 3, picture=marked, turned=turned))
    assert light_corner(frame.pixels) == {-90: 1, 180: 2, 90: 3}[turned]


@pytest.mark.parametrize(
    ("aspect", "turned", "size"),
    [((2, 1), 0, (256, 96)), ((1, 2), 0, (128, 192)), ((2, 1), -90, (96, 256)), ((16, 15), 0, (137, 96)),
     ((1, 100), 0, (128, 96))],
)  # fmt: skip
def test_pixels_that_are_not_square_become_square(decoder, tmp_path, aspect, turned, size):
    """The last one is absurd, and ignored."""
    clip = write_clip(tmp_path / "a.mkv", 3, picture=marked, aspect=aspect, turned=turned)
    frame = one(decoder, clip)
    assert frame.size == size
    assert frame.pixels.shape == (size[1], size[0], 3)
    assert light_corner(frame.pixels) == (1 if turned else 0)
    small = one(decoder, clip, short_side=48)
    assert min(small.pixels.shape[:2]) == 48
    assert small.size == size


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")])
@pytest.mark.parametrize("size", [(131, 97), (97, 131), (65, 64)])
def test_odd_sizes(decoder, tmp_path, name, codec, size):
    clip = write_clip(tmp_path / name, 12, codec, size=size)
    for short_side in (1 << 16, 63):
        frame = one(decoder, clip, 9, short_side)
        assert frame.size == size
        assert min(frame.pixels.shape[:2]) == min(short_side, *size)
        assert shown_number(frame.pixels) == 9


def two_fields(number: int) -> Pixels:
    """Even rows show one moment, odd rows the next."""
    pixels = numbered(2 * number)
    pixels[1::2] = numbered(2 * number + 1)[1::2]
    return pixels


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"x264-params": "tff=1"}), ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "qmax": "2"})],
)
def test_an_interlaced_frame_is_one_field(decoder, tmp_path, name, codec, options):
    clip = write_clip(tmp_path / name, 20, codec, options=options, picture=two_fields)
    index = decoder.index(clip)
    for frame in decoder.frames(clip, range(0, 20, 3), index, 96):
        assert frame.pixels.shape == (96, 128, 3)
        assert shown_number(frame.pixels) == 2 * frame.place  # it would fail on a mixture of two numbers


def test_frames_beyond_8k_are_refused_before_they_are_decoded():
    check_pixels(7680, 4320)
    with pytest.raises(RejectedInput) as rejected:
        check_pixels(7681, 4320)
    assert rejected.value.reason == Reason.BOMB


def test_a_file_with_frames_beyond_8k_is_a_bomb(decoder, tmp_path):
    size = (7696, 4336)
    black = coded(np.zeros((1, 3)), BT601, size)
    clip = write_clip(tmp_path / "a.mkv", 1, options={"preset": "ultrafast"}, size=size, picture=lambda _: black)
    for call in (decoder.index, decoder.duration_s):
        with pytest.raises(RejectedInput) as rejected:
            call(clip)
        assert rejected.value.reason == Reason.BOMB


@pytest.mark.parametrize(
    ("given", "aspect", "short_side", "wanted"),
    [((1920, 1080), 1.0, 256, (455, 256)), ((1080, 1920), 1.0, 256, (256, 455)), ((100, 50), 1.0, 256, (100, 50)),
     ((720, 576), 16 / 15, 256, (341, 256)), ((720, 480), 8 / 9, 256, (341, 256)), ((9000, 2), 1.0, 1, (4500, 1))],
)  # fmt: skip
def test_target_sizes(given, aspect, short_side, wanted):
    width, height = target_size(*given, aspect, short_side)
    assert (width, height) == pytest.approx(wanted, abs=1)
