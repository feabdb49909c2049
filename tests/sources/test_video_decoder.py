"""Which frame comes back: every wanted frame of every codec shows its own number, over strides, stretches and seeks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from video_support import numbered, shown_number, write_clip

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import video_child, video_stream
from uvd.sources.video_decoder import DecodedFrame, FrameIndex, VideoDecoder

X264 = "bframes=3:b-adapt=0:scenecut=0"
X265 = "log-level=none:pools=none:frame-threads=1:bframes=3:b-adapt=0"
FAST_VPX = {"deadline": "realtime", "cpu-used": "8"}
AV1 = {"preset": "8", "crf": "20", "svtav1-params": "lp=1"}
CLIPS = {
    "h264.mp4": ("libx264", {"x264-params": X264}),
    "h264-pyramid.mkv": ("libx264", {"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal:ref=4"}),
    "h264-open-gop.mp4": ("libx264", {"x264-params": f"{X264}:open-gop=1"}),
    "h264-open-gop.mkv": ("libx264", {"x264-params": f"{X264}:open-gop=1"}),
    "h264-open-gop.ts": ("libx264", {"x264-params": f"{X264}:open-gop=1"}),
    "h264-refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}),
    "h264-refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0"}),
    "h264.ts": ("libx264", {"x264-params": X264}),
    "h264.avi": ("libx264", {"x264-params": X264}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": X265}),
    "hevc-open-gop.mkv": ("libx265", {"preset": "ultrafast", "x265-params": f"{X265}:open-gop=1"}),
    "hevc-10bit.mp4": ("libx265", {"preset": "ultrafast", "x265-params": X265}),
    "vp8.webm": ("libvpx", FAST_VPX),
    "vp9.webm": ("libvpx-vp9", FAST_VPX),
    "vp9-hidden-frames.webm": ("libvpx-vp9", {"cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1.mp4": ("libsvtav1", AV1),
    "av1.webm": ("libsvtav1", AV1),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4-b-frames.avi": ("mpeg4", {"bf": "2"}),
    "mpeg4-b-frames.mp4": ("mpeg4", {"bf": "2"}),
    "mjpeg.mov": ("mjpeg", {}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
}
FORMATS = {"hevc-10bit.mp4": "yuv420p10le", "mjpeg.mov": "yuvj420p"}
FRAMES = 100
COUNTED = {"h264.avi", "mpeg4-b-frames.avi"}
PATTERNS = {
    "all": range(FRAMES),
    "every third": range(0, FRAMES, 3),
    "every tenth": range(5, FRAMES, 10),
    "every thirtieth": range(7, FRAMES, 30),
    "the last": [FRAMES - 1],
    "far apart": [1, 2, 50, 97],
}


@pytest.fixture(scope="module")
def decoder() -> Iterator[VideoDecoder]:
    with VideoDecoder() as decoder:
        yield decoder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, (codec, options) in CLIPS.items():
        write_clip(folder / name, FRAMES, codec, options=options, pix_fmt=FORMATS.get(name, "yuv420p"))
    return folder


def decoded(decoder: VideoDecoder, path: Path, places: Sequence[int], index: FrameIndex) -> list[DecodedFrame]:
    """Frames by place; each comes once."""
    frames = sorted(decoder.frames(path, places, index, 96), key=lambda frame: frame.place)
    assert len({frame.place for frame in frames}) == len(frames)
    return frames


@pytest.mark.parametrize("name", CLIPS)
def test_every_wanted_frame_is_the_right_one(decoder, clips, name):
    index = decoder.index(clips / name)
    assert len(index) == FRAMES
    assert index.times_s == pytest.approx(np.arange(FRAMES) / 25, abs=1e-3)
    assert index.counted == (name in COUNTED)
    assert index.lacking == 0
    for pattern, places in PATTERNS.items():
        frames = decoded(decoder, clips / name, places, index)
        assert [frame.place for frame in frames] == list(places), pattern
        assert [shown_number(frame.pixels) for frame in frames] == list(places), pattern
        assert [frame.index for frame in frames] == list(places), pattern
        assert {frame.size for frame in frames} == {(128, 96)}


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 0.92), (1.4, 2.6), (2.04, None)])
def test_a_stretch_gives_its_frames_and_the_same_pixels_as_the_whole_file(decoder, clips, name, start_s, end_s):
    path = clips / name
    inside = range(round(start_s * 25), FRAMES if end_s is None else round(end_s * 25))
    index = decoder.index(path, start_s, end_s)
    assert index.times_s == pytest.approx(np.array(inside) / 25, abs=1e-3)
    assert index.first == inside[0]
    frames = decoded(decoder, path, range(0, len(index), 7), index)
    assert [frame.index for frame in frames] == list(inside[::7])
    whole = decoded(decoder, path, inside[::7], decoder.index(path))
    for frame, same in zip(frames, whole, strict=True):
        assert frame.time_s == same.time_s
        assert shown_number(frame.pixels) == frame.index
        assert np.array_equal(frame.pixels, same.pixels)


@pytest.mark.parametrize("name", ["h264-open-gop.mp4", "h264.avi", "vp9.webm", "mpeg2.ts"])
def test_pixels_do_not_depend_on_which_frames_are_asked_for(decoder, clips, name):
    index = decoder.index(clips / name)
    alone = [decoded(decoder, clips / name, [place], index)[0].pixels for place in (23, 24, 25, 60)]
    among = {frame.place: frame.pixels for frame in decoded(decoder, clips / name, range(FRAMES), index)}
    assert all(np.array_equal(pixels, among[place]) for pixels, place in zip(alone, (23, 24, 25, 60), strict=True))


def test_stretches_that_follow_each_other_hold_every_frame_once(decoder, clips):
    for name in CLIPS:
        edges = [0.0, 0.5, 1.26, 1.271, 3.1, None]
        parts = [decoder.index(clips / name, start, end) for start, end in pairwise(edges)]
        stamps = np.concatenate([part.stamps for part in parts])
        assert stamps.tolist() == decoder.index(clips / name).stamps.tolist(), name


def test_a_stretch_beyond_the_end_is_empty(decoder, clips):
    for name in ("h264.mp4", "vp9.webm", "mpeg2.ts", "h264.avi"):
        assert len(decoder.index(clips / name, 50.0, 60.0)) == 0, name


STAMPS_MS = [7 * k + 3 * (k * k % 11) + 400 * (k > 30) for k in range(60)]
"""Frames 7 to 40 ms apart, and a pause of 0.4 s."""


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv", "late.mkv", "late.mp4", "vp9.webm"])
def test_a_variable_frame_rate_keeps_frames_and_their_times(decoder, tmp_path, name):
    stamps = sorted({*STAMPS_MS})
    late = 700 if name.startswith("late") else 0
    codec, options = ("libvpx-vp9", FAST_VPX) if name == "vp9.webm" else CLIPS["h264.mp4"]
    clip = write_clip(
        tmp_path / name, len(stamps), codec, options=options, stamps_ms=[stamp + late for stamp in stamps]
    )
    index = decoder.index(clip)
    assert index.times_s == pytest.approx(np.array(stamps) / 1000, abs=1e-3)  # from the start of the stream
    frames = decoded(decoder, clip, range(1, len(stamps), 4), index)
    assert [shown_number(frame.pixels) for frame in frames] == list(range(1, len(stamps), 4))
    stretch = decoder.index(clip, 0.1, 0.8)
    inside = [number for number, stamp in enumerate(stamps) if 100 <= stamp < 800]
    assert [shown_number(frame.pixels) for frame in decoded(decoder, clip, range(len(stretch)), stretch)] == inside


def test_the_frame_on_screen_at_a_time(decoder, clips):
    index = decoder.index(clips / "h264.mp4")
    assert [index.at(time_s) for time_s in (0.0, 0.039, 0.04, 0.041, 2.0, 3.96, 3.97)] == [0, 1, 1, 1, 50, 99, 99]
    assert [index.at(0.019), index.at(0.0201)] == [0, 1]  # half a frame
    assert index.at(-0.1) is None
    assert index.at(60.0) is None
    assert decoder.index(clips / "h264.mp4", 50.0, 60.0).at(50.0) is None


def test_duration(decoder, clips):
    for name in CLIPS.keys() - {"h264.ts", "mpeg2.ts", "mpeg2.mpg", "h264-open-gop.ts"}:
        assert decoder.duration_s(clips / name) == pytest.approx(4.0, abs=0.13), name


def test_frames_are_scaled_down_never_up(decoder, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 3, size=(320, 240), picture=lambda number: numbered(number, (320, 240)))
    index = decoder.index(clip)
    for short_side, shape in ((96, (96, 128, 3)), (240, (240, 320, 3)), (1 << 16, (240, 320, 3)), (31, (31, 41, 3))):
        for frame in decoder.frames(clip, range(3), index, short_side):
            assert frame.pixels.shape == shape
            assert frame.size == (320, 240)
            assert shown_number(frame.pixels) == frame.place


def answers(path: Path, places: Sequence[int]) -> list[tuple[list[int], bool]]:
    """What the child answers to one reading: places, and whether there are more."""
    index = video_stream.read_index(str(path))
    keys = np.searchsorted(index.stamps, index.keys).tolist()
    wanted = {"stamps": index.stamps[list(places)].tolist(), "keys": index.keys.tolist(), "key_numbers": keys}
    request = {"operation": "frames", "path": str(path), "short_side": 96, "square": False}
    request["wanted"] = wanted | {"counted": False}
    found: list[tuple[list[int], bool]] = []
    while not found or found[-1][1]:
        said, pictures = video_child.handle(request | {"begin": sum(len(places) for places, _ in found)})
        assert [shown_number(pixels) for pixels in pictures] == [places[place] for place in said["places"]]
        found.append((said["places"], said["more"]))
    return found


def test_frames_come_in_answers_of_limited_size(clips, monkeypatch):
    """A child keeps the file open between the answers of one reading, so that nothing is decoded twice."""
    monkeypatch.setattr(video_child, "ANSWER_BYTES", 3 * 96 * 128 * 4)
    found = answers(clips / "h264.mp4", range(0, 20, 2))
    assert found == [([0, 1, 2, 3], True), ([4, 5, 6, 7], True), ([8, 9], False)]


def test_a_child_that_was_replaced_between_answers_goes_on(clips, decoder, monkeypatch):
    index = decoder.index(clips / "h264.mp4")
    monkeypatch.setattr(video_child, "ANSWER_BYTES", 3 * 96 * 128 * 4)
    path = clips / "h264.mp4"
    request = {
        "operation": "frames",
        "path": str(path),
        "wanted": {"stamps": index.stamps.tolist(), "keys": [int(index.keys[0])], "key_numbers": [0], "counted": False},
        "short_side": 96,
        "square": False,
    }
    video_child.handle(request | {"begin": 0})
    monkeypatch.setattr(video_child, "_reading", None)  # as in a new process
    said, pictures = video_child.handle(request | {"begin": 4})
    assert said["places"] == [4, 5, 6, 7]
    assert [shown_number(pixels) for pixels in pictures] == [4, 5, 6, 7]


def test_the_same_decoder_reads_one_file_after_another(decoder, clips):
    first, second = clips / "h264.mp4", clips / "vp9.webm"
    reading = decoder.frames(first, [3, 4, 90], decoder.index(first), 96)
    assert next(reading).place == 3
    assert [frame.place for frame in decoder.frames(second, [7], decoder.index(second), 96)] == [7]
    assert [shown_number(frame.pixels) for frame in reading] == [4, 90]


def test_nothing_wanted_gives_nothing(decoder, clips):
    assert list(decoder.frames(clips / "h264.mp4", [], decoder.index(clips / "h264.mp4"), 96)) == []


def test_a_missing_file(decoder, tmp_path):
    for call in (decoder.index, decoder.duration_s):
        with pytest.raises(RejectedInput) as rejected:
            call(tmp_path / "a.mp4")
        assert rejected.value.reason == Reason.MISSING


def test_a_film_with_sound(decoder, tmp_path):
    """The sound is the first stream, and its packets lie between those of the pictures."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.float32), format="fltp", layout="mono")
            noise.sample_rate = 8000
            container.mux(sound.encode(noise))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    index = decoder.index(path)
    assert len(index) == 30
    assert [shown_number(frame.pixels) for frame in decoded(decoder, path, range(0, 30, 4), index)] == [
        *range(0, 30, 4)
    ]
