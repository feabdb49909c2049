"""The `video` source on clips made here, whose frames show their own number as a grey level."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reason, Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.video import VideoConfig, VideoSource, place_windows

H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"
STEP = 4
"""Grey levels between two frames: enough to tell neighbours apart after coding."""


def write_clip(path: Path, frames: int = 50, codec: str = H264, pictures: Any = None, gop: int = 12) -> Path:
    """A 96x64 clip; frame k is a plain grey of level 10 + 4k, unless `pictures(k)` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.thread_count = 1
        stream.gop_size = gop
        stream.bit_rate = 2_000_000
        for number in range(frames):
            pixels = np.full((64, 96, 3), 10 + STEP * number, np.uint8) if pictures is None else pictures(number)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def noisy(number: int) -> np.ndarray:
    """A grey level with a pattern, so that the file has some bytes for each frame."""
    noise = np.random.default_rng(number).integers(-9, 10, (64, 96, 1))
    return np.repeat((10 + STEP * number + noise).clip(0, 255), 3, axis=2).astype(np.uint8)


def shown_number(pixels: np.ndarray) -> float:
    return (float(pixels.mean()) - 10) / STEP


def config(folder: Path, **more: Any) -> VideoConfig:
    return VideoConfig.model_validate({"dataset": "d", "input": folder, "strides": [1, 2, 3]} | more)


def read(config: VideoConfig) -> tuple[list[Example], list[Reject]]:
    source = VideoSource(config)
    items = [item for unit in source.plan() for item in source.read(unit, Seeds(0, (unit.shard,)))]
    return [item for item in items if isinstance(item, Example)], [item for item in items if isinstance(item, Reject)]


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


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        pytest.param(suffix, codec, id=f"{codec}-{suffix}")
        for suffix, codec in (("mp4", H264), ("mkv", H264), ("avi", "mpeg4"), ("mp4", "mpeg4"), ("webm", "libvpx-vp9"))
        if codec in av.codecs_available
    ],
)
def test_picture_k_of_a_window_is_frame_start_plus_k_strides(tmp_path, suffix, codec):
    write_clip(tmp_path / f"a.{suffix}", 50, codec)
    examples, rejects = read(config(tmp_path))
    assert rejects == []
    windows = [[picture.index for picture in example.pictures] for example in examples]
    assert windows == [
        *([*range(start, start + 16)] for start in (0, 16, 32)),
        [*range(0, 32, 2)],
        [*range(0, 48, 3)],
    ]
    for example in examples:
        for picture in example.pictures:
            assert shown_number(picture.pixels) == pytest.approx(picture.index, abs=0.49)
            assert picture.size == (96, 64)


def test_windows_are_stored_in_order(tmp_path):
    write_clip(tmp_path / "in" / "deep" / "a.mp4", 40)
    counts, rejects = ingest(config(tmp_path / "in", strides=[2]), tmp_path / "d")
    assert (counts["used"], counts["sequences"], rejects) == (1, 1, [])
    dataset = Dataset(str(tmp_path / "d"))
    (stored,) = read_image_shard(dataset, dataset.shards("sequences/video")[0])
    assert stored.row["origins"] == ["deep/a.mp4"] * 16
    assert stored.row["indices"] == list(range(0, 32, 2))
    numbers = [shown_number(picture) for picture in stored.pictures()]
    assert numbers == pytest.approx(range(0, 32, 2), abs=0.6)


@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(0, 3000),
    strides=st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True).map(tuple),
    per_stride=st.integers(1, 6),
    min_frames=st.integers(2, 16),
)
def test_windows_by_property(frames, strides, per_stride, min_frames):
    windows = place_windows(frames, strides, per_stride, min_frames, Seeds(1))
    assert windows == place_windows(frames, strides, per_stride, min_frames, Seeds(1))
    for stride in strides:
        mine = [window for window in windows if window.stride == stride]
        fit = len(range(0, frames, stride))
        used = [number for window in mine for number in range(window.start, window.frames[-1] + 1)]
        assert all(0 <= number < frames for number in used)  # never beyond the clip
        assert len(used) == len(set(used))  # nor over one another
        assert {window.count for window in mine} <= {min(16, fit)}
        assert all(window.start % (stride * window.count) == 0 for window in mine)  # end to end
        if fit < min_frames:
            assert mine == []
        elif fit <= 16:
            assert [window.start for window in mine] == [0]
        else:
            possible = sum(start + 15 * stride < frames for start in range(0, frames, 16 * stride))
            assert len(mine) == min(per_stride, possible)


def test_thinning_depends_on_the_seed():
    drawn = {tuple(w.start for w in place_windows(5000, (1,), 4, 16, Seeds(seed))) for seed in range(10)}
    assert len(drawn) > 5
    assert all(list(starts) == sorted(starts) for starts in drawn)


def test_a_short_clip_gives_a_short_window_if_that_is_allowed(tmp_path):
    write_clip(tmp_path / "a.mp4", 12)
    _, rejects = read(config(tmp_path))
    assert [reject.reason for reject in rejects] == [Reason.TOO_SHORT]
    examples, rejects = read(config(tmp_path, min_frames=6))
    assert rejects == []
    assert [[p.index for p in example.pictures] for example in examples] == [[*range(12)], [*range(0, 12, 2)]]


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def test_each_bad_file_is_one_reject_and_the_others_are_used(tmp_path):
    folder = tmp_path / "in"
    whole = write_clip(folder / "good-1.mp4").read_bytes()
    write_clip(folder / "good-2.mkv")
    write_clip(folder / "one-frame.mp4", 1)
    write_sound(folder / "sound.mp4")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "shell.mp4").write_bytes(box(b"ftyp", b"isom\0\0\2\0isomiso2") + box(b"moov"))
    (folder / "noise.avi").write_bytes(np.random.default_rng(1).bytes(5000))
    (folder / "heavy.mp4").write_bytes(whole + bytes(1 << 20))
    counts, rejects = ingest(config(folder, max_bytes=1 << 20, shard_size=4), tmp_path / "d")
    assert {row["origin"]: row["reason"] for row in rejects} == {
        "one-frame.mp4": "too_short",
        "sound.mp4": "not_video",
        "cut.mp4": "not_video",
        "empty.mp4": "not_video",
        "text.mp4": "not_video",
        "shell.mp4": "not_video",
        "noise.avi": "not_video",
        "heavy.mp4": "too_large",
    }
    assert len(rejects) == 8
    assert (counts["inputs"], counts["used"], counts["partial"]) == (10, 2, 0)
    assert not any(str(tmp_path) in row["detail"] for row in rejects)


def test_a_playlist_under_a_video_s_name_opens_no_other_file(tmp_path):
    """FFmpeg goes by content: `ffconcat` and HLS lists would make it open the files they name."""
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n")
    examples, rejects = read(config(tmp_path))
    assert {reject.origin: reject.reason for reject in rejects} == {
        "concat.mp4": Reason.NOT_VIDEO,
        "hls.mp4": Reason.NOT_VIDEO,
    }
    assert {example.pictures[0].origin for example in examples} == {"good.mp4"}


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_a_clip_cut_in_the_middle_is_used_up_to_there(tmp_path, suffix):
    """Containers without an index at the end: what lies before the cut is good."""
    codec = "mpeg4" if suffix == "avi" else H264
    clip = write_clip(tmp_path / "in" / f"a.{suffix}", 50, codec, noisy)
    whole = clip.read_bytes()
    clip.write_bytes(whole[: int(len(whole) * 0.6)])
    counts, rejects = ingest(config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"]) == (1, 1)
    assert 1 <= counts["sequences"] < 3
    dataset = Dataset(str(tmp_path / "d"))
    for stored in read_image_shard(dataset, dataset.shards("sequences/video")[0]):
        numbers = [shown_number(picture) for picture in stored.pictures()]
        assert numbers == pytest.approx(stored.row["indices"], abs=1.5)
    assert counts["partial"] == len(rejects)


def test_a_clip_damaged_in_the_middle_is_partial(tmp_path):
    """The index of an MP4 at its front lists 50 frames; the data of the last ones is gone."""
    clip = write_clip(tmp_path / "in" / "a.mp4", 50, "mpeg4", noisy)
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[start + int(0.7 * (end - start)) : end] = b"\xff" * (end - start - int(0.7 * (end - start)))
    clip.write_bytes(content)
    counts, rejects = ingest(config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"], counts["partial"]) == (1, 1, 1)
    assert counts["sequences"] == 2
    assert [(row["reason"], row["partial"]) for row in rejects] == [("truncated", True)]


MATRICES = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}
"""ISO/IEC 14496-12, 6.2.2: (a, b, c, d) with x' = a x + c y and y' = b x + d y, y down: clockwise display rotation."""


@pytest.mark.parametrize("degrees", MATRICES)
def test_the_rotation_of_phones_is_applied(tmp_path, degrees):
    def marked(_: int) -> np.ndarray:
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[:32, :48] = 240  # upper left as stored
        return pixels

    clip = write_clip(tmp_path / "a.mp4", 16, H264, marked)
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in MATRICES[degrees])
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(content)
    (example,), rejects = read(config(tmp_path, strides=[1], resize="stretch"))
    assert rejects == []
    corners = (
        example.pictures[3].pixels[[40, 40, 215, 215], [40, 215, 215, 40]].mean(axis=1)
    )  # clockwise from upper left
    assert int(corners.argmax()) == degrees // 90
    assert np.sort(corners)[2] < 60
    assert example.pictures[3].size == ((64, 96) if degrees % 180 else (96, 64))


def test_damage_anywhere_never_stops_the_shard(tmp_path):
    whole = write_clip(tmp_path / "in" / "good.mp4", 20, H264, noisy).read_bytes()
    rng = np.random.default_rng(5)
    for number in range(40):
        damaged = bytearray(whole)
        places = (len(whole) - rng.random(8) ** 2 * len(whole)).astype(int).clip(0, len(whole) - 1)
        for place in places:
            damaged[place] = int(rng.integers(256))
        (tmp_path / "in" / f"{number:02d}.mp4").write_bytes(damaged)
    counts, rejects = ingest(config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert counts["inputs"] == 41
    assert "good.mp4" not in {row["origin"] for row in rejects}


def test_an_input_without_videos_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SourceError, match=str(place)):
            list(VideoSource(config(place)).plan())
