"""The `video` source from files to stored sequences: windows, rates, filters, scenes, and what bounds its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from tests_support import smooth_photo
from video_support import (
    Pixels,
    ingest,
    kept_decoders,
    numbered,
    numbers,
    read,
    shown_number,
    shown_numbers,
    video_config,
    write_clip,
)

from uvd.manifests import Dataset, read_image_shard
from uvd.sequences import Reason
from uvd.sources import video
from uvd.sources.video import VideoConfig
from uvd.sources.video_windows import Window

FAST_VPX = {"deadline": "realtime", "cpu-used": "8"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}


@pytest.fixture(scope="module", autouse=True)
def one_child() -> Iterator[None]:
    with kept_decoders():
        yield


def test_every_codec_and_container_goes_to_stored_sequences(tmp_path):
    folder = tmp_path / "in"
    write_clip(folder / "h264.mp4", 50)
    write_clip(folder / "deep" / "hevc.mkv", 50, "libx265", options=X265)
    write_clip(folder / "vp9.webm", 50, "libvpx-vp9", options=FAST_VPX)
    write_clip(folder / "av1.mp4", 50, "libsvtav1", options={"preset": "8", "crf": "20", "svtav1-params": "lp=1"})
    write_clip(folder / "mpeg4.avi", 50, "mpeg4", options={"bf": "2"})
    write_clip(folder / "mjpeg.mov", 50, "mjpeg", pix_fmt="yuvj420p")
    counts, rejects = ingest(video_config(folder), tmp_path / "d")
    assert rejects == []
    assert (counts["inputs"], counts["used"], counts["sequences"]) == (6, 6, 6 * 5)
    dataset = Dataset(str(tmp_path / "d"))
    (shard,) = dataset.shards("sequences/video")
    found: dict[str, int] = {}
    for stored in read_image_shard(dataset, shard):
        assert [shown_number(picture) for picture in stored.pictures()] == stored.row["indices"]
        (origin,) = set(stored.row["origins"])
        found[origin] = found.get(origin, 0) + 1
    assert found == {path.relative_to(folder).as_posix(): 5 for path in folder.rglob("*.*")}


def test_windows_of_a_clip_by_their_end(tmp_path):
    write_clip(tmp_path / "a.mp4", 50)
    examples, rejects = read(video_config(tmp_path))
    assert rejects == []
    assert [numbers(example) for example in examples] == [
        [*range(16)],
        [*range(0, 32, 2)],
        [*range(16, 32)],
        [*range(0, 48, 3)],
        [*range(32, 48)],
    ]
    for example in examples:
        assert shown_numbers(example) == numbers(example)
        assert {picture.size for picture in example.pictures} == {(128, 96)}
        assert {picture.role for picture in example.pictures} == {"frame"}
        assert {picture.pixels.shape for picture in example.pictures} == {(256, 256, 3)}


def test_the_strides_of_the_paper(tmp_path):
    write_clip(tmp_path / "a.mp4", 640, options={"preset": "ultrafast"})
    config = VideoConfig.model_validate({"dataset": "d", "input": tmp_path})
    assert config.strides == (10, 20, 30)
    examples, rejects = read(config)
    assert rejects == []
    assert [numbers(example) for example in examples] == [
        [*range(start, start + 16 * stride, stride)]
        for start, stride in ((0, 10), (0, 20), (160, 10), (0, 30), (320, 10), (320, 20), (480, 10))
    ]
    assert all(shown_numbers(example) == numbers(example) for example in examples)


def test_random_placement_and_limits(tmp_path):
    write_clip(tmp_path / "a.mp4", 200)
    examples, _ = read(video_config(tmp_path, placement="random", windows_per_stride=5))
    starts = {(numbers(example)[0], numbers(example)[1] - numbers(example)[0]) for example in examples}
    assert len(starts) == len(examples) == 15
    assert any(start % 16 for start, _ in starts)
    few, _ = read(video_config(tmp_path, placement="random", windows_per_stride=5, windows_per_input=4))
    assert len(few) == 4
    kept = {(numbers(example)[0], numbers(example)[1] - numbers(example)[0]) for example in few}
    assert kept < starts
    assert [numbers(example)[-1] for example in few] == sorted(numbers(example)[-1] for example in few)
    for example in examples:
        assert shown_numbers(example) == numbers(example)


def test_a_short_clip_gives_a_short_window_if_that_is_allowed(tmp_path):
    write_clip(tmp_path / "a.mp4", 12)
    _, (reject,) = read(video_config(tmp_path))
    assert reject.reason == Reason.TOO_SHORT
    assert reject.detail == "12 frames, under 16 at stride 1"
    examples, rejects = read(video_config(tmp_path, min_frames=6))
    assert rejects == []
    assert [numbers(example) for example in examples] == [[*range(0, 12, 2)], [*range(12)]]


def test_a_minimal_duration(tmp_path):
    write_clip(tmp_path / "a.mp4", 40)
    write_clip(tmp_path / "b.mp4", 80)
    examples, (reject,) = read(video_config(tmp_path, strides=[2], min_duration_s=2))
    assert {example.group for example in examples} == {"b.mp4"}
    assert (reject.origin, reject.reason) == ("a.mp4", Reason.TOO_SHORT)


def test_frames_at_a_rate_before_the_stride(tmp_path):
    write_clip(tmp_path / "a.mp4", 100, rate=50)
    examples, rejects = read(video_config(tmp_path, strides=[1, 3], fps=25))
    assert rejects == []
    assert [numbers(example) for example in examples] == [
        [*range(0, 32, 2)],
        [*range(32, 64, 2)],
        [*range(0, 96, 6)],
        [*range(64, 96, 2)],
    ]
    assert all(shown_numbers(example) == numbers(example) for example in examples)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_variable_rate_is_made_even(tmp_path, suffix):
    """30 frames 20 ms apart, then 30 frames 100 ms apart: at 10 a second every fifth, then each."""
    stamps = [*range(0, 600, 20), *range(600, 3600, 100)]
    codec, options = ("libvpx-vp9", FAST_VPX) if suffix == "webm" else ("libx264", {})
    write_clip(tmp_path / f"a.{suffix}", 60, codec, options=options, stamps_ms=stamps)
    examples, rejects = read(video_config(tmp_path, strides=[1], fps=10))
    assert rejects == []
    assert [numbers(example) for example in examples] == [[*range(0, 30, 5), *range(30, 40)], [*range(40, 56)]]
    assert all(shown_numbers(example) == numbers(example) for example in examples)


def test_black_frames(tmp_path):
    """Frames 20 to 23 of 64 are black."""

    def picture(number: int) -> Pixels:
        return np.full((96, 128, 3), 5, np.uint8) if 20 <= number < 24 else numbered(number)

    write_clip(tmp_path / "in" / "a.mp4", 64, picture=picture)
    write_clip(tmp_path / "in" / "black.mp4", 64, picture=lambda _: np.zeros((96, 128, 3), np.uint8))
    counts, rejects = ingest(video_config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"], counts["partial"], counts["sequences"]) == (2, 1, 1, 3)
    assert [(row["origin"], row["reason"], row["partial"], row["detail"]) for row in rejects] == [
        ("a.mp4", "filtered_black", True, "of 4 windows 1 with black frames"),
        ("black.mp4", "filtered_black", False, "of 4 windows 4 with black frames"),
    ]
    examples, (reject,) = read(video_config(tmp_path / "in", strides=[1], max_black_frames=4))
    assert [numbers(example)[0] for example in examples] == [0, 16, 32, 48]
    assert reject.origin == "black.mp4"


def test_static_clips(tmp_path):
    def still(_: int) -> Pixels:
        return smooth_photo(3, 96, 128)

    def halfway(number: int) -> Pixels:
        return numbered(max(0, number - 31))

    write_clip(tmp_path / "in" / "a.mp4", 48, picture=still)
    write_clip(tmp_path / "in" / "b.mp4", 48, picture=halfway)
    examples, rejects = read(video_config(tmp_path / "in", strides=[1]))
    assert [(reject.origin, reject.reason, reject.detail) for reject in rejects] == [
        ("a.mp4", Reason.FILTERED_STATIC, "of 3 windows 3 without motion"),
        ("b.mp4", Reason.FILTERED_STATIC, "of 3 windows 2 without motion"),
    ]
    assert [numbers(example) for example in examples] == [[*range(32, 48)]]
    examples, rejects = read(video_config(tmp_path / "in", strides=[1], min_motion=0))
    assert len(examples) == 6
    assert rejects == []


def two_films(cut: int) -> Any:
    """Numbered frames over one photo, and from `cut` on over another."""
    photos = [smooth_photo(11, 96, 128), 255 - smooth_photo(11, 96, 128)]

    def picture(number: int) -> Pixels:
        pixels = numbered(number)
        pixels[:36] = photos[number >= cut][:36]
        pixels[:, :16] = pixels[:, -16:] = (250, 250, 40) if number >= cut else (20, 20, 160)
        return pixels

    return picture


@pytest.mark.parametrize("name", ["a.mp4", "frames"])
def test_no_window_crosses_a_cut(tmp_path, name):
    picture = two_films(39)
    if name == "a.mp4":
        write_clip(tmp_path / "in" / name, 100, picture=picture)
    else:
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(100):
            assert cv2.imwrite(str(tmp_path / "in" / name / f"{number}.png"), picture(number)[..., ::-1])
    blind, _ = read(video_config(tmp_path / "in", strides=[1], windows_per_stride=9))
    assert any(39 in numbers(example)[1:] for example in blind)
    examples, rejects = read(
        video_config(tmp_path / "in", strides=[1, 2], scenes={"detect": True}, windows_per_stride=9)
    )
    assert rejects == []
    assert [(numbers(example)[0], numbers(example)[-1]) for example in examples] == [
        (0, 15),
        (0, 30),
        (16, 31),
        (39, 54),
        (39, 69),
        (55, 70),
        (71, 86),
    ]
    assert all(shown_numbers(example) == numbers(example) for example in examples)


def test_cuts_together_with_a_rate(tmp_path):
    """At half of the rate the scene begins with the first of the kept frames that is in it."""
    write_clip(tmp_path / "a.mp4", 100, rate=50, picture=two_films(39))
    examples, rejects = read(video_config(tmp_path, strides=[1], fps=25, scenes={"detect": True}))
    assert rejects == []
    assert [(numbers(example)[0], numbers(example)[-1]) for example in examples] == [(0, 30), (40, 70)]


def test_a_higher_threshold_finds_no_cut(tmp_path):
    write_clip(tmp_path / "a.mp4", 70, picture=two_films(39))
    scenes = {"detect": True, "threshold": 255.0}
    examples, _ = read(video_config(tmp_path, strides=[1], scenes=scenes))
    assert [numbers(example)[0] for example in examples] == [0, 16, 32, 48]


def frames_of(places: Iterable[int]) -> Iterator[video._Frame]:
    pixels = np.zeros((256, 256, 3), np.uint8)
    for place in places:
        yield video._Frame(place, video.Picture("frame", pixels, "a.mp4", (256, 256), place), pixels[:64, :64, 0])


def alive() -> int:
    return sum(isinstance(thing, video._Frame) for thing in gc.get_objects())


def test_pictures_are_dropped_when_no_window_needs_them():
    windows = [Window(start, 1, 16) for start in range(0, 1600, 16)]
    most = 0
    for number, frames in enumerate(video._completed(windows, np.arange(1600), frames_of(range(1600)))):
        assert frames is not None
        assert [frame.place for frame in frames] == list(windows[number].frames)
        most = max(most, alive())
    assert number == 99
    assert most <= 50


def test_a_frame_that_never_comes_costs_its_windows_and_no_memory(monkeypatch):
    monkeypatch.setattr(video, "MAX_HELD", 40)
    windows = [Window(start, 1, 16) for start in range(0, 320, 16)]
    lost, most = [], 0
    there = (place for place in range(320) if place != 21)
    for number, frames in enumerate(video._completed(windows, np.arange(320), frames_of(there))):
        lost += [number] if frames is None else []
        most = max(most, alive())
    assert (number, lost) == (19, [1])
    assert most <= 80


def test_late_frames_are_waited_for():
    """The decoder gives what it found at a second attempt after what lies behind it."""
    windows = [Window(0, 1, 4), Window(4, 1, 4)]
    found = list(video._completed(windows, np.arange(8), frames_of([0, 1, 3, 4, 5, 2, 6, 7])))
    assert [[frame.place for frame in frames or []] for frames in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_all_windows_of_a_film_are_cropped_alike(tmp_path):
    """The crop is drawn once for a clip, so the frames of a sequence fit together."""
    picture = smooth_photo(5, 96, 160)

    def moving(number: int) -> Pixels:
        pixels = picture.copy()
        pixels[:8, :] = 4 * number
        return pixels

    write_clip(tmp_path / "a.mp4", 32, size=(160, 96), picture=moving, options={"x264-params": "qp=4"})
    examples, _ = read(video_config(tmp_path, strides=[1], resize="random_crop", min_motion=0))
    lower = [picture.pixels[128:].astype(int) for example in examples for picture in example.pictures]
    assert len(lower) == 32
    assert max(np.abs(other - lower[0]).mean() for other in lower) < 3


def test_lanczos_has_the_full_frame_to_work_on(tmp_path):
    write_clip(tmp_path / "a.mp4", 16, size=(640, 480), picture=lambda number: numbered(number, (640, 480)))
    assert video_config(tmp_path).short_side == 256
    assert video_config(tmp_path, resample="lanczos").short_side > 4320
    for resample in ("area", "lanczos"):
        (example,), _ = read(video_config(tmp_path, strides=[1], resample=resample))
        assert shown_numbers(example) == [*range(16)]
        assert example.pictures[0].size == (640, 480)


@pytest.mark.parametrize(
    "more",
    [
        {"strides": []},
        {"strides": [0]},
        {"strides": [-3]},
        {"fps": 0},
        {"placement": "anywhere"},
        {"min_frames": 17},
        {"min_frames": 1},
        {"windows_per_stride": 0},
        {"format": "film"},
        {"scenes": {"detct": True}},
    ],
)
def test_settings_that_make_no_sense(tmp_path, more):
    with pytest.raises(ValidationError):
        video_config(tmp_path, **more)


def test_a_holdout_keeps_a_film_on_one_side(tmp_path):
    for number in range(6):
        write_clip(tmp_path / f"{number}.mp4", 50)
    examples, _ = read(video_config(tmp_path, holdout={"val": 0.5}))
    sides = {(example.group, example.split) for example in examples}
    assert len(sides) == 6
    assert {split for _, split in sides} == {"train", "val"}


def test_a_folder_with_a_strange_name(tmp_path):
    folder = tmp_path / "a b [1] é%d #?"
    write_clip(tmp_path / "x.mp4", 20)
    folder.mkdir()
    (tmp_path / "x.mp4").rename(folder / "50% -i x:y.mp4")
    (example,), rejects = read(video_config(folder, strides=[1]))
    assert rejects == []
    assert example.group == "50% -i x:y.mp4"


def test_paths_are_not_protocols(tmp_path, monkeypatch):
    """`concat:a|b` and the like are addresses to FFmpeg, if they come without a folder."""
    write_clip(tmp_path / "a.mp4", 20)
    monkeypatch.chdir(tmp_path)
    Path("concat:a.mp4|a.mp4").write_bytes(Path("a.mp4").read_bytes())
    Path("list.csv").write_text("path\nconcat:a.mp4|a.mp4\n")
    examples, rejects = read(video_config(Path("list.csv"), strides=[1]))
    assert rejects == []
    assert [example.group for example in examples] == ["concat:a.mp4|a.mp4"]
