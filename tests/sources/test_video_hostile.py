"""Videos that are broken, misleading or meant to do harm: each is a reject with its reason, and nothing is lost.

`read` and `ingest` check for every source here that inputs are used or rejected, each once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests_support import write_photo
from video_support import (
    Pixels,
    box,
    ingest,
    kept_decoders,
    media_data,
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
from uvd.sources import video_decoder

X264 = {"x264-params": "bframes=2:b-adapt=0:scenecut=0"}


def noisy(number: int) -> Pixels:
    """A numbered frame with a texture that changes, so that each has some hundreds of bytes."""
    pixels = numbered(number)
    noise = np.random.default_rng(number).integers(-15, 16, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module", autouse=True)
def one_child() -> Iterator[None]:
    with kept_decoders():
        yield


def test_each_bad_file_is_one_reject_and_the_others_are_used(tmp_path):
    folder = tmp_path / "in"
    whole = write_clip(folder / "good-1.mp4").read_bytes()
    write_clip(folder / "good-2.mkv")
    write_clip(folder / "one-frame.mp4", 1)
    write_clip(folder / "short.webm", 15, "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    write_sound(folder / "sound.mp4")
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "text.mp4").write_text("not a video\n" * 100)
    (folder / "shell.mp4").write_bytes(box(b"ftyp", b"isom\0\0\2\0isomiso2") + box(b"moov"))
    (folder / "noise.avi").write_bytes(np.random.default_rng(1).bytes(5000))
    (folder / "noise.ts").write_bytes(np.random.default_rng(2).bytes(50_000))
    write_photo(folder / "photo.png", 1)
    (folder / "photo.png").rename(folder / "photo.mp4")
    (folder / "folder.mp4").mkdir()
    counts, rejects = ingest(video_config(folder, strides=[2], shard_size=20), tmp_path / "d")
    assert {row["origin"]: row["reason"] for row in rejects} == {
        "one-frame.mp4": "too_short",
        "short.webm": "too_short",
        **dict.fromkeys(
            ["sound.mp4", "cut.mp4", "empty.mp4", "zeros.mp4", "text.mp4", "shell.mp4", "noise.avi", "noise.ts",
             "photo.mp4"],
            "not_video",
        ),
    }  # fmt: skip
    assert len(rejects) == 11
    assert (counts["inputs"], counts["used"], counts["partial"]) == (13, 2, 0)
    assert not any(str(tmp_path) in row["detail"] for row in rejects)


def test_a_wrong_name_does_not_matter_if_the_content_is_a_video(tmp_path):
    write_clip(tmp_path / "a.mp4", 20).rename(tmp_path / "a.avi")
    write_clip(tmp_path / "b.webm", 20, "libvpx").rename(tmp_path / "b.mp4")
    write_clip(tmp_path / "c.ts", 20, "mpeg2video").rename(tmp_path / "c.mov")
    examples, rejects = read(video_config(tmp_path, strides=[1]))
    assert rejects == []
    assert [shown_numbers(example) for example in examples] == [[*range(16)]] * 3


def test_a_playlist_under_a_video_s_name_opens_no_other_file(tmp_path):
    """FFmpeg goes by content: `ffconcat`, HLS and DASH lists would make it open the files they name."""
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\ngood.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "dash.mp4").write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1"><BaseURL>good.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    (tmp_path / "sdp.mp4").write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n")
    examples, rejects = read(video_config(tmp_path))
    assert {reject.origin: reject.reason for reject in rejects} == dict.fromkeys(
        ("concat.mp4", "hls.mp4", "dash.mp4", "sdp.mp4"), Reason.NOT_VIDEO
    )
    assert {example.pictures[0].origin for example in examples} == {"good.mp4"}


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")]
)
def test_a_clip_cut_in_the_middle_is_used_up_to_there(tmp_path, name, codec):
    """Containers without an index at the end: what lies before the cut is good."""
    clip = write_clip(tmp_path / "in" / name, 50, codec, picture=noisy)
    whole = clip.read_bytes()
    clip.write_bytes(whole[: int(len(whole) * 0.6)])
    counts, rejects = ingest(video_config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"]) == (1, 1)
    assert 1 <= counts["sequences"] < 3
    assert counts["partial"] == len(rejects)
    dataset = Dataset(str(tmp_path / "d"))
    for stored in read_image_shard(dataset, dataset.shards("sequences/video")[0]):
        assert [shown_number(picture) for picture in stored.pictures()] == stored.row["indices"]


def test_an_avi_that_announces_more_frames_than_it_has_is_partial(tmp_path):
    clip = write_clip(tmp_path / "in" / "a.avi", 50, "mpeg4", picture=noisy)
    whole = clip.read_bytes()
    clip.write_bytes(whole[: int(len(whole) * 0.6)])
    counts, (row,) = ingest(video_config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["used"], counts["partial"]) == (1, 1)
    assert (row["reason"], row["partial"]) == ("truncated", True)
    assert "of 50 announced frames are not there" in row["detail"]


def overwrite(path: Path, begin: float, end: float, seed: int | None = None) -> None:
    """Replaces a part of an MP4's pictures, by ones or at random; its index stays."""
    content = bytearray(path.read_bytes())
    start, stop = media_data(content)
    first, last = (start + int(share * (stop - start)) for share in (begin, end))
    junk = b"\xff" * (last - first) if seed is None else np.random.default_rng(seed).bytes(last - first)
    content[first:last] = junk
    path.write_bytes(content)


def test_a_tail_of_junk_costs_the_windows_that_need_it(tmp_path):
    """The index of the MP4 lists 50 frames; the data of the last ones is gone."""
    clip = write_clip(tmp_path / "in" / "a.mp4", 50, "mpeg4", picture=noisy)
    overwrite(clip, 0.7, 1.0)
    counts, (row,) = ingest(video_config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"], counts["partial"], counts["sequences"]) == (1, 1, 1, 2)
    assert (row["reason"], row["partial"]) == ("truncated", True)
    assert row["detail"] == "of 3 windows 1 with frames that cannot be decoded"


def test_damage_in_the_middle_shows_no_frame_under_another_s_number(tmp_path):
    """Packets 40 % to 60 % into the file are junk; windows before and after are right, those in it are counted."""
    clip = write_clip(tmp_path / "in" / "a.mp4", 160, options=X264, gop=10, picture=noisy)
    overwrite(clip, 0.42, 0.58)
    examples, rejects = read(video_config(tmp_path / "in", strides=[1], windows_per_stride=20))
    (reject,) = rejects
    assert reject.reason == Reason.TRUNCATED
    lost = int(reject.detail.split()[3])
    assert reject.detail == f"of 10 windows {lost} with frames that cannot be decoded"
    assert 1 <= lost <= 4
    assert len(examples) == 10 - lost
    starts = [numbers(example)[0] for example in examples]
    assert starts[:3] == [0, 16, 32]
    assert starts[-3:] == [112, 128, 144]
    for example in examples:
        assert shown_numbers(example) == numbers(example)


def test_nothing_of_a_file_full_of_junk(tmp_path):
    clip = write_clip(tmp_path / "in" / "a.mp4", 50, picture=noisy)
    overwrite(clip, 0.0, 1.0, seed=3)
    counts, (row,) = ingest(video_config(tmp_path / "in", strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"], counts["rejected"], counts["sequences"]) == (1, 0, 1, 0)
    assert (row["reason"], row["partial"]) == ("truncated", False)
    assert row["detail"] == "of 3 windows 3 with frames that cannot be decoded"


def test_damage_anywhere_never_stops_the_shard(tmp_path):
    sources = {
        "mp4": write_clip(tmp_path / "a.mp4", 20, picture=noisy).read_bytes(),
        "mkv": write_clip(tmp_path / "a.mkv", 20, "libx265", picture=noisy,
                          options={"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}).read_bytes(),
        "webm": write_clip(tmp_path / "a.webm", 20, "libvpx-vp9", picture=noisy,
                           options={"deadline": "realtime", "cpu-used": "8"}).read_bytes(),
        "avi": write_clip(tmp_path / "a.avi", 20, "mpeg4", picture=noisy, options={"bf": "2"}).read_bytes(),
        "ts": write_clip(tmp_path / "a.ts", 20, "mpeg2video", picture=noisy).read_bytes(),
    }  # fmt: skip
    rng = np.random.default_rng(5)
    for suffix, whole in sources.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"good.{suffix}").write_bytes(whole)
        for number in range(10):
            damaged = bytearray(whole)
            # Mostly at the ends, where the headers and indexes are.
            places = rng.random(8) ** 2 * len(whole)
            places[::2] = len(whole) - places[::2]
            for place in places.astype(int).clip(0, len(whole) - 1):
                damaged[place] = int(rng.integers(256))
            (tmp_path / "in" / f"{number:02d}.{suffix}").write_bytes(damaged)
    more: dict[str, Any] = {"strides": [1], "timeout_s": 20, "memory_bytes": 1 << 30, "shard_size": 100}
    counts, rejects = ingest(video_config(tmp_path / "in", **more), tmp_path / "d")
    assert counts["inputs"] == 55
    assert counts["used"] >= 15
    assert not {row["origin"] for row in rejects} & {f"good.{suffix}" for suffix in sources}
    assert {row["reason"] for row in rejects} <= {"not_video", "truncated", "too_short", "timeout", "crashed", "bomb"}


def edited_times(clip: Path, deltas: list[tuple[int, int]]) -> None:
    """Replaces the time-to-sample table of an MP4 without B-frames: (count, delta) runs, padded to the same size."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"stts") - 4
    size = struct.unpack(">I", content[at : at + 4])[0]
    entries = b"".join(struct.pack(">II", count, delta) for count, delta in deltas)
    table = box(b"stts", struct.pack(">II", 0, len(deltas)) + entries)
    assert len(table) <= size or len(deltas) == 1
    content[at : at + size] = table.ljust(size, b"\0")
    clip.write_bytes(content)


def test_timestamps_that_are_all_the_same_are_counted(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 40, options={"x264-params": "bframes=0"})
    edited_times(clip, [(40, 0)])
    examples, rejects = read(video_config(tmp_path, strides=[2]))
    assert rejects == []
    assert [shown_numbers(example) for example in examples] == [[*range(0, 32, 2)]]
    assert numbers(examples[0]) == [*range(0, 32, 2)]


@pytest.mark.parametrize("stamps", [
    [1000 * number if number < 20 else 10_000_000 + 1000 * number for number in range(40)],
    [2**40 + 1000 * number for number in range(40)],
], ids=["a jump of hours", "a late start"])  # fmt: skip
def test_timestamps_with_jumps_lose_no_frame(tmp_path, stamps):
    write_clip(tmp_path / "a.mkv", 40, options={"x264-params": "bframes=0"}, stamps_ms=stamps)
    examples, rejects = read(video_config(tmp_path, strides=[2]))
    assert rejects == []
    assert [shown_numbers(example) for example in examples] == [[*range(0, 32, 2)]]


def test_a_transport_stream_that_starts_again(tmp_path):
    """Two recordings in one file: the clock goes back, and no frame may be shown under another's number."""
    first = write_clip(tmp_path / "1.ts", 40, "mpeg2video").read_bytes()
    second = write_clip(tmp_path / "2.ts", 40, "mpeg2video", picture=lambda number: numbered(40 + number)).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ts").write_bytes(first + second)
    examples, _ = read(video_config(tmp_path / "in", strides=[1], windows_per_stride=9))
    assert len(examples) >= 3
    for example in examples:
        assert shown_numbers(example) == numbers(example)


def test_a_decoder_that_loops_or_dies_is_ended_and_the_next_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(video_decoder, "HANDLER", "isolated_handlers:hang_or_read_video")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    whole = write_clip(tmp_path / "in" / "a.mp4", 20).read_bytes()
    for name in ("abort", "hang", "late", "z"):
        (tmp_path / "in" / f"{name}.mp4").write_bytes(whole)
    counts, rejects = ingest(video_config(tmp_path / "in", strides=[1], timeout_s=1), tmp_path / "d")
    assert (counts["inputs"], counts["used"]) == (5, 2)
    assert [(row["origin"], row["reason"]) for row in rejects] == [
        ("abort.mp4", "crashed"),
        ("hang.mp4", "timeout"),
        ("late.mp4", "timeout"),
    ]


def test_a_stream_that_changes_its_size_is_no_sequence(tmp_path):
    """Transport streams may go on in another size; a window of two sizes would have to be cropped twice."""
    first = write_clip(tmp_path / "1.ts", 30, options=X264).read_bytes()
    size = (192, 96)
    second = write_clip(
        tmp_path / "2.ts", 30, options=X264, size=size, picture=lambda number: numbered(30 + number, size),
        stamps_ms=[1200 + 40 * number for number in range(30)],
    ).read_bytes()  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ts").write_bytes(first + second)
    examples, (reject,) = read(video_config(tmp_path / "in", strides=[1], windows_per_stride=9))
    assert reject.reason in (Reason.NOT_VIDEO, Reason.TRUNCATED)
    for example in examples:
        assert len({picture.size for picture in example.pictures}) == 1
        assert shown_numbers(example) == numbers(example)


def test_damage_in_a_file_that_is_counted_ends_it(tmp_path):
    """Without timestamps nobody knows the numbers of what lies behind a packet that could not be decoded."""
    clip = write_clip(tmp_path / "in" / "a.avi", 100, "mpeg4", options={"bf": "2"}, picture=noisy)
    content = bytearray(clip.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = np.random.default_rng(1).bytes(3000)
    clip.write_bytes(content)
    examples, rejects = read(video_config(tmp_path / "in", strides=[1], windows_per_stride=20))
    assert [reject.reason for reject in rejects] == [Reason.TRUNCATED]
    assert 1 <= len(examples) < 6
    for example in examples:
        assert shown_numbers(example) == numbers(example)
