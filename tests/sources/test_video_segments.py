"""Long videos: cut into segments that cover them once, spread over shards by their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from video_support import kept_decoders, numbers, planned, put, read, shown_numbers, video_config, write_clip

from uvd.sequences import Reason
from uvd.sources.video import VideoSource
from uvd.sources.video_decoder import VideoDecoder
from uvd.sources.video_inputs import VideoInputs


@pytest.fixture(scope="module", autouse=True)
def one_child() -> Iterator[None]:
    with kept_decoders():
        yield


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """61 seconds at 10 frames a second, in containers that seek and one that is counted."""
    folder = tmp_path_factory.mktemp("films")
    x264 = {"preset": "ultrafast", "x264-params": "open-gop=1:bframes=2:b-adapt=0"}
    for name, codec, options in (
        ("a.mp4", "libx264", x264),
        ("b.mkv", "libx264", x264),
        ("c.avi", "mpeg4", {"bf": "2"}),
    ):
        write_clip(folder / name, 610, codec, rate=10, gop=45, options=options)
    return folder


def test_long_files_are_cut_into_segments_that_cover_them_once(film):
    more = {"split_above": 1000, "segment_s": 10}
    items = planned(film, **more)
    with VideoDecoder() as decoder:
        for name in ("a.mp4", "b.mkv", "c.avi"):
            mine = [item for item in items if item["origin"] == name]
            assert [(item["start_s"], item["end_s"]) for item in mine] == [
                (0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, None),
            ]  # fmt: skip
            parts = [decoder.index(film / name, item["start_s"], item["end_s"]) for item in mine]
            assert [len(part) for part in parts] == [100, 100, 100, 100, 100, 110]
            stamps = np.concatenate([part.stamps for part in parts])
            assert stamps.tolist() == decoder.index(film / name).stamps.tolist()


def test_segments_give_the_frames_that_they_name(film):
    config = video_config(film, split_above=1000, segment_s=10, strides=[6], windows_per_stride=99, shard_bytes=50_000)
    units = list(VideoSource(config).plan())
    assert len(units) >= 3  # spread over several shards
    sizes = {path.name: path.stat().st_size for path in film.iterdir()}
    for name, size in sizes.items():
        said = sum(item["bytes"] for unit in units for item in unit.payload["items"] if item["origin"] == name)
        assert 0 <= size - said < 6
    examples, rejects = read(config)
    assert rejects == []
    assert len(examples) == 18
    for example in examples:
        assert shown_numbers(example) == numbers(example)
    assert sorted(numbers(example)[0] for example in examples) == sorted([0, 100, 200, 300, 400, 500] * 3)
    assert len({example.group for example in examples}) == 3  # a film stays on one side of a split


def test_short_files_and_files_without_a_duration_are_one_input(tmp_path, film):
    assert [item["end_s"] for item in planned(film, segment_s=10)] == [None] * 3  # not large
    assert [item["end_s"] for item in planned(film, segment_s=60, split_above=1000)] == [None] * 3
    put(tmp_path / "a.mp4", b"not a video" * 1000)
    assert [item["end_s"] for item in planned(tmp_path, split_above=1000)] == [None]
    _, (reject,) = read(video_config(tmp_path, split_above=1000))
    assert reject.reason == Reason.NOT_VIDEO


def test_an_interval_of_a_long_film_is_segmented_within_it(film):
    def items(rows: list[dict[str, Any]], **more: Any) -> list[tuple[float, float | None]]:
        pq.write_table(pa.Table.from_pylist(rows), film / "list.parquet")
        inputs = VideoInputs(str(film / "list.parquet"), "auto", 10.0, 1000, 2, lambda _: 61.0)
        return [(item["start_s"], item["end_s"]) for item in inputs.items()]

    assert items([{"path": "a.mp4", "start": 5.0, "end": 32.0}]) == [(5, 15), (15, 25), (25, 32)]
    assert items([{"path": "a.mp4", "start": 48.0, "end": None}]) == [(48, None)]
    assert items([{"path": "a.mp4", "start": 70.0, "end": None}]) == [(70, None)]
    assert items([{"path": "a.mp4", "start": 40.0, "end": 9e6}]) == [(40, 50), (50, 9e6)]


def test_a_file_that_claims_to_be_endless_does_not_flood_the_plan(tmp_path):
    put(tmp_path / "a.mp4", bytes(2000))
    inputs = VideoInputs(str(tmp_path), "auto", 10.0, 1000, 2, lambda _: 1e15)
    assert sum(1 for _ in inputs.items()) == 10_000


def test_shards_close_by_inputs_or_by_bytes(tmp_path):
    for number in range(10):
        put(tmp_path / f"{number}.mp4", bytes(1000 * (number + 1)))
    sizes = [unit.num_inputs for unit in VideoSource(video_config(tmp_path, shard_size=4)).plan()]
    assert sizes == [4, 4, 2]
    sizes = [unit.num_inputs for unit in VideoSource(video_config(tmp_path, shard_size=4, shard_bytes=9000)).plan()]
    assert sizes == [4, 2, 2, 1, 1]
    assert len(planned(tmp_path, limit=3)) == 3
