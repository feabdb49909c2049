"""AVA: boxes at whole seconds of a film meet the frames that are on screen then, and follow people by colour."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from annotated_support import HEIGHT, SIDE, WIDTH, config, ingest, left_of, numbers, read, reasons, scene, square_in

from uvd.renderers.palette import PALETTE
from uvd.sequences import Example
from uvd.sources.annotated_video.source import AnnotatedVideoSource
from uvd.sources.base import SourceError

FPS = 10
SECONDS = 22
PEOPLE = {0: 17, 1: 4}
"""Person ids of the two tracks: the lower one belongs to the second."""
PLACES = {0: 2, 1: 1}
"""So these are their places among the sorted ids."""


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 s of `scene`, in which each frame can be told from those around it."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_film(path, SECONDS)
    return path


def write_film(path: Path, seconds: float, codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for number in range(round(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(scene(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def box(number: int, track: int) -> tuple[float, float, float, float]:
    left, top = left_of(number, track)
    return left / WIDTH, top / HEIGHT, (left + SIDE) / WIDTH, (top + SIDE) / HEIGHT


def row(video: str, second: int, track: int, action: str = "12", **change: Any) -> str:
    """A row as AVA writes it, on the square of a track."""
    x1, y1, x2, y2 = box(FPS * second, track)
    cells = {"x1": f"{x1:.3f}", "y1": f"{y1:.3f}", "x2": f"{x2:.3f}", "y2": f"{y2:.3f}"}
    cells = {"video": video, "time": f"{second:04d}", **cells, "action": action, "person": PEOPLE[track]}
    return ",".join(str(cell) for cell in (cells | change).values())


def write_ava(
    root: Path, film: Path, rows: Iterable[str], split: str = "train", videos: Iterable[str] = ("m",)
) -> Path:
    for video in videos:
        (root / "videos").mkdir(parents=True, exist_ok=True)
        if not (root / "videos" / f"{video}.mp4").exists():
            (root / "videos" / f"{video}.mp4").hardlink_to(film)
    (root / f"ava_{split}_v2.2.csv").write_text("\n".join(rows) + "\n")
    return root


def box_colours(example: Example, track: int) -> list[tuple[int, int, int]]:
    """For each frame of a window the colour of the outline around a track's square."""
    found = []
    for picture in example.pictures[1::2]:
        left, top = left_of(picture.index or 0, track)
        crop, scale = (WIDTH - HEIGHT) // 2, 256 / HEIGHT
        x0, y0 = (left - crop) * scale, top * scale
        edge = picture.pixels[round(y0 + SIDE * scale / 2), round(x0)], picture.pixels[round(y0), round(x0) + 20]
        assert (edge[0] == edge[1]).all()
        found.append(tuple(edge[0].tolist()))
    return found


def test_frames_are_those_of_the_annotated_seconds(tmp_path, film):
    """Seconds 2 to 12 and 15: frames 20, 30, … of 10 a second; no window reaches over the gap."""
    seconds = [*range(2, 13), 15]
    root = write_ava(tmp_path, film, [row("m", second, track) for second in seconds for track in (0, 1)])
    examples, rejects = read(config(root, kind="ava"))
    assert rejects == []
    assert [numbers(example) for example in examples] == [[*range(20, 100, 10)], [100, 110, 120], [150]]
    for example in examples:
        assert {picture.role for picture in example.pictures} == {"frame", "boxes"}
        for frame in example.pictures[::2]:
            assert frame.size == (WIDTH, HEIGHT)
            shown = square_in(frame.pixels, 0).any(axis=0).nonzero()[0]
            left = (left_of(frame.index or 0, 0)[0] - (WIDTH - HEIGHT) // 2) * 256 / HEIGHT
            assert abs(shown[0] - left) < 3  # a frame more or less would be 7 pixels off


def test_boxes_lie_on_their_people_and_keep_their_colours(tmp_path, film):
    seconds = [*range(2, 13), 15]
    root = write_ava(tmp_path, film, [row("m", second, track) for second in seconds for track in (0, 1)])
    for resize_over in (True, False):
        examples, _ = read(config(root, kind="ava", boxes_over_image=resize_over))
        for track in (0, 1):
            colours = {colour for example in examples for colour in box_colours(example, track)}
            assert colours == {tuple(PALETTE[PLACES[track]].tolist())}
    assert all((picture.pixels[128, 250] == 0).all() for picture in examples[0].pictures[1::2])


@pytest.mark.parametrize("layout", ["interleaved", "grouped"])
def test_both_layouts_end_to_end(tmp_path, film, layout):
    root = write_ava(tmp_path / "in", film, [row("m", second, 0) for second in range(2, 10)], "val")
    counts, refused, (stored,) = ingest(config(root, kind="ava", layouts={layout: 1}), tmp_path / "d")
    assert (counts["inputs"], counts["used"], refused) == (1, 1, {})
    frames = [10 * second for second in range(2, 10)]
    interleaved = [number for number in frames for _ in range(2)]
    assert stored.row["indices"] == (interleaved if layout == "interleaved" else frames * 2)
    names = ["frame", "boxes"] * 8
    assert stored.row["roles"] == (names if layout == "interleaved" else ["frame"] * 8 + ["boxes"] * 8)
    assert stored.row["split"] == "val"
    assert set(stored.row["origins"]) == {"videos/m.mp4", "ava_val_v2.2.csv"}


def test_random_crops_move_frames_and_boxes_alike(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", second, 0) for second in range(2, 8)])
    (example,), _ = read(config(root, kind="ava", resize="random_crop", boxes_over_image=False))
    for frame, drawn in zip(example.pictures[::2], example.pictures[1::2], strict=True):
        shown, outlined = square_in(frame.pixels, 0).nonzero(), drawn.pixels.any(axis=-1).nonzero()
        for axis in (0, 1):
            assert abs(int(shown[axis].min()) - int(outlined[axis].min())) <= 3
            assert abs(int(shown[axis].max()) - int(outlined[axis].max())) <= 3


def test_rows_that_differ_by_action_are_one_box(tmp_path, film):
    rows = [row("m", 3, 0, action) for action in ("12", "17", "")] + [row("m", 3, 1)]
    source = AnnotatedVideoSource(config(write_ava(tmp_path, film, rows), kind="ava"))
    (unit,) = source.plan()
    (item,) = unit.payload["items"]
    assert [[place for place, *_ in boxes] for boxes in item["boxes"]] == [[1, 2]]


BAD_ROWS = {
    "box outside": row("m", 4, 0, x2="1.001"),
    "box outside ": row("m", 4, 0, y1="-0.1"),
    "without area": row("m", 4, 0, x1="0.9", x2="0.9"),
    "without area ": row("m", 4, 0, y1="0.9", y2="0.1"),
    "box is not a number": row("m", 4, 0, x1=""),
    "box is not finite": row("m", 4, 0, y2="nan"),
    "timestamp is not a number": row("m", 4, 0, time="four"),
    "timestamp is no second": row("m", 4, 0, time="-1"),
    "person_id is not": row("m", 4, 0, person=""),
    "person_id is not ": row("m", 4, 0, person="1.5"),
    "action_id is not": row("m", 4, 0, action="walk"),
    "7 columns": row("m", 4, 0).rpartition(",")[0],
    "1 columns": '"',
    "video_id is no name": row("../m", 4, 0),
    "another box of person 17": row("m", 3, 0, x1="0.01"),
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_a_bad_row_is_rejected_by_its_line_and_costs_no_frame(tmp_path, film, message):
    """The other person at second 4 keeps her box, and second 4 stays in its window."""
    rows = [row("m", second, 0) for second in (2, 3, 5)] + [row("m", 4, 1)]
    root = write_ava(tmp_path, film, [*rows, "", BAD_ROWS[message]])
    (unit,) = AnnotatedVideoSource(config(root, kind="ava")).plan()
    window, bad = unit.payload["items"]
    assert window["times_ms"] == [2000, 3000, 4000, 5000]
    assert [[place for place, *_ in boxes] for boxes in window["boxes"]] == [[2], [2], [1], [2]]
    assert window["boxes"][1][0][1:] == pytest.approx(box(30, 0), abs=1e-3)
    assert (bad["origin"], bad["refused"]) == ("ava_train_v2.2.csv:6", "bad_annotation")
    assert message.strip() in bad["detail"]


def test_a_second_with_bad_rows_only_is_no_frame(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", 2, 0), row("m", 3, 0, x1="2"), row("m", 4, 0)])
    examples, rejects = read(config(root, kind="ava"))
    assert [numbers(example) for example in examples] == [[20], [40]]
    assert reasons(rejects) == {"ava_train_v2.2.csv:2": "bad_annotation"}


def test_excluded_seconds_are_named_and_end_a_window(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", second, 0) for second in range(2, 7)])
    (root / "ava_train_excluded_timestamps_v2.2.csv").write_text("m,0004\nother,0002\n")
    examples, rejects = read(config(root, kind="ava"))
    assert [numbers(example) for example in examples] == [[20, 30], [50, 60]]
    assert reasons(rejects) == {"videos/m.mp4#t=4": "no_annotation"}


def test_films_without_rows_and_rows_without_films(tmp_path, film):
    root = write_ava(tmp_path, film, [row(video, 3, 0) for video in ("m", "gone")], videos=("m", "unlisted"))
    (root / "videos" / "m.webm").write_bytes(b"another m")
    (example,), rejects = read(config(root, kind="ava"))
    assert example.group == "m"
    assert reasons(rejects) == {
        "videos/gone#t=3": "missing",
        "videos/unlisted.mp4": "no_annotation",
        "videos/m.webm": "no_annotation",
    }


def test_a_film_that_is_too_short_loses_only_what_lies_beyond(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", second, 0) for second in (*range(18, 26), 40)])
    (example,), rejects = read(config(root, kind="ava"))
    assert numbers(example) == [180, 190, 200, 210, 219]  # the last frame ends at second 22.0
    assert reasons(rejects) == {"videos/m.mp4#t=18": "too_short", "videos/m.mp4#t=40": "too_short"}
    assert "at second 23, 24, 25" in rejects[0].detail


def test_cut_copies_start_later(tmp_path, film):
    """Copies cut to the annotated quarter start at second 900 of the film."""
    rows = [row("m", second, 0, time=f"{900 + second:04d}") for second in range(5)]
    root = write_ava(tmp_path, film, rows)
    (example,), rejects = read(config(root, kind="ava", files_start_s=900))
    assert (numbers(example), rejects) == ([0, 10, 20, 30, 40], [])
    assert set(box_colours(example, 0)) == {tuple(PALETTE[1].tolist())}
    assert {str(reject.reason) for reject in read(config(root, kind="ava"))[1]} == {"too_short"}


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "not_video"), (b"no film at all", "not_video"), ("audio", "not_video")]
)
def test_files_that_are_no_film(tmp_path, film, content, reason):
    root = write_ava(tmp_path, film, [row(video, 3, 0) for video in ("m", "bad")])
    if content == "audio":
        with av.open(str(root / "videos" / "bad.mp4"), "w") as container:
            stream = container.add_stream("aac", rate=44100, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
            sound.sample_rate = 44100
            container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
    else:
        (root / "videos" / "bad.mp4").write_bytes(content)
    (example,), rejects = read(config(root, kind="ava"))
    assert example.group == "m"
    assert reasons(rejects) == {"videos/bad.mp4#t=3": reason}


def test_a_damaged_film_gives_what_can_be_decoded(tmp_path, film):
    root = write_ava(tmp_path, film, [])
    write_film(root / "videos" / "cut.avi", 12, "mpeg4")
    data = (root / "videos" / "cut.avi").read_bytes()
    (root / "videos" / "cut.avi").write_bytes(data[: len(data) // 2])
    write_ava(root, film, [row("cut", second, 0) for second in range(1, 12)])
    (example,), rejects = read(config(root, kind="ava"))
    assert numbers(example)[:3] == [10, 20, 30]
    assert len(numbers(example)) < 8
    assert set(reasons(rejects)) == {"videos/cut.avi#t=1", "videos/cut.avi#t=9", "videos/m.mp4"}


def test_people_outside_the_crop(tmp_path, film):
    outside = {"x1": "0.0", "x2": "0.05"}
    root = write_ava(tmp_path, film, [row("m", 3, 0), row("m", 4, 0, **outside), row("m", 9, 1, **outside)])
    (example,), rejects = read(config(root, kind="ava"))
    assert numbers(example) == [30, 40]
    assert reasons(rejects) == {"videos/m.mp4#t=9": "no_annotation"}


def test_the_stride_takes_every_second_second(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", second, 0) for second in (*range(1, 8), 10, 11)])
    examples, _ = read(config(root, kind="ava", stride=2))
    assert [numbers(example) for example in examples] == [[10, 30, 50, 70], [100]]


def test_train_and_val_are_the_lists(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", 3, 0)], videos=("m", "v"))
    write_ava(root, film, [row("v", 3, 0)], "val")
    examples, rejects = read(config(root, kind="ava"))
    assert ({example.group: example.split for example in examples}, rejects) == ({"m": "train", "v": "val"}, [])


def test_lists_that_contradict_each_other_are_errors(tmp_path, film):
    root = write_ava(tmp_path, film, [row("m", 3, 0)])
    source = AnnotatedVideoSource(config(root, kind="ava"))
    write_ava(root, film, [row("m", 4, 0)], "val")
    with pytest.raises(SourceError, match="'m' is both in"):
        list(source.plan())
    (root / "ava_val_v2.2.csv").rename(root / "ava_train_v2.1.csv")
    with pytest.raises(SourceError, match="keep one version"):
        list(source.plan())
    (root / "ava_train_v2.1.csv").unlink()
    (root / "ava_train_v2.2.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="not UTF-8"):
        list(source.plan())
    (root / "ava_train_v2.2.csv").write_text(row("m", 4, 0))
    (root / "ava_train_excluded_timestamps_v2.2.csv").write_text("m,0001\nm\n")
    with pytest.raises(SourceError, match="line 2: 1 columns"):
        list(source.plan())
    (root / "ava_train_v2.2.csv").unlink()
    with pytest.raises(SourceError, match=r"no ava_train_v2"):
        list(source.plan())
