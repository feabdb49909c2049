"""What the `video` source may be given, and that every clip of it becomes an input, once, in a fixed order."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from video_support import (
    ingest,
    kept_decoders,
    numbered,
    numbers,
    planned,
    put,
    read,
    shown_numbers,
    video_config,
    write_clip,
)

from uvd.sequences import Reason, Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.video import VideoSource
from uvd.sources.video_clips import natural_key
from uvd.sources.video_decoder import VideoDecoder

FETCH = {"allow_private_hosts": True, "backoff_s": 0.01, "retries": 0, "total_timeout_s": 5.0}


@pytest.fixture(scope="module", autouse=True)
def one_child() -> Iterator[None]:
    with kept_decoders():
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    """40 frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", 40).read_bytes()


def picture_bytes(number: int, suffix: str = "png", size: tuple[int, int] = (128, 96)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered(number, size)).save(buffer, {"png": "PNG", "jpg": "JPEG"}[suffix], quality=95)
    return buffer.getvalue()


def origins(place: Path | str, **more: Any) -> list[str]:
    found = [item["origin"] for item in planned(place, **more)]
    assert found == [item["origin"] for item in planned(place, **more)]
    return found


def reasons(rejects: list[Reject]) -> dict[str, Reason]:
    return {reject.origin: reject.reason for reject in rejects}


def test_a_folder_is_searched_to_the_bottom_in_a_fixed_order(tmp_path):
    for name in ("b/2.mp4", "a.WEBM", "b/1.mkv", "c/deep/er/x.avi", "z.mov", "z.txt", "cover.png", ".hidden/y.ts"):
        put(tmp_path / name)
    assert origins(tmp_path) == [".hidden/y.ts", "a.WEBM", "b/1.mkv", "b/2.mp4", "c/deep/er/x.avi", "z.mov"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    secret = put(tmp_path / "secret.mp4")
    put(tmp_path / "in" / "a.mp4")
    (tmp_path / "in" / "b.mp4").symlink_to(secret)
    assert origins(tmp_path / "in") == ["a.mp4"]


def test_one_file(tmp_path, clip):
    put(tmp_path / "in" / "a.mp4", clip)
    put(tmp_path / "in" / "b.mp4", clip)
    examples, rejects = read(video_config(tmp_path / "in" / "a.mp4", strides=[2]))
    assert rejects == []
    (example,) = examples
    assert {picture.origin for picture in example.pictures} == {"a.mp4"}
    assert shown_numbers(example) == numbers(example) == [*range(0, 32, 2)]


def test_a_glob(tmp_path, clip):
    for name in ("x/1.mp4", "x/2.mp4", "y/1.mp4", "y/z/3.mp4", "y/z/3.txt"):
        put(tmp_path / name, clip)
    assert origins(f"{tmp_path}/*/1.mp4") == ["x/1.mp4", "y/1.mp4"]
    assert origins(f"{tmp_path}/**/*.*") == ["x/1.mp4", "x/2.mp4", "y/1.mp4", "y/z/3.mp4"]
    assert origins(f"{tmp_path}/y/z/[0-9].mp4") == ["3.mp4"]
    examples, rejects = read(video_config(f"{tmp_path}/*/1.mp4", strides=[2]))
    assert [example.pictures[0].origin for example in examples] == ["x/1.mp4", "y/1.mp4"]
    assert rejects == []


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ([], {}),
        (["notes.txt", "one/1.png"], {}),  # one picture is no clip
        (["a.tar"], {"format": "files"}),
        (["a.mp4"], {"format": "tars"}),
        (["a.mp4"], {"format": "frames"}),
    ],
)
def test_an_input_without_clips_is_an_error_that_names_it(tmp_path, files, more):
    for name in files:
        put(tmp_path / name)
    with pytest.raises(SourceError, match=str(tmp_path)):
        planned(tmp_path, **more)


def test_an_input_that_is_not_there_is_an_error_that_names_it(tmp_path):
    for place in (tmp_path / "nothing", tmp_path / "a.mp4", tmp_path / "a.csv", f"{tmp_path}/*.mp4"):
        with pytest.raises(SourceError) as error:
            planned(place)
        assert str(place) in str(error.value)


def write_list(path: Path, rows: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
        return path
    mark = "\t" if path.suffix == ".tsv" else ","
    cells = [["" if value is None else str(value) for value in column] for column in rows.values()]
    lines = [mark.join(rows), *map(mark.join, zip(*cells, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_list_of_files_with_intervals(tmp_path, clip, suffix):
    put(tmp_path / "films" / "a, b.mp4" if suffix == "parquet" else tmp_path / "films" / "a b.mp4", clip)
    name = "films/a, b.mp4" if suffix == "parquet" else "films/a b.mp4"
    rows = {
        "caption": ["x"] * 4,
        "path": [name, name, name, str(tmp_path / name)],
        "start": [None, 0.8, None, 0],
        "end": [None, None, 0.72, 1.4],
    }
    examples, rejects = read(video_config(write_list(tmp_path / f"list.{suffix}", rows), strides=[1], shard_size=2))
    assert rejects == []
    windows = [(example.pictures[0].origin, numbers(example)[0]) for example in examples]
    assert windows == [
        (name, 0),
        (name, 16),
        (name, 20),
        (name, 0),
        (str(tmp_path / name), 0),
        (str(tmp_path / name), 16),
    ]
    assert all(shown_numbers(example) == numbers(example) for example in examples)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_that_cannot_be_used_are_rejects(tmp_path, clip, suffix):
    put(tmp_path / "a.mp4", clip)
    rows: dict[str, list[Any]] = {
        "path": ["a.mp4", "gone.mp4", *["a.mp4"] * 5, None, "films", "a.mp4", "a.mp4"],
        "start": [None, 0.0, 1.0, -1.0, 3.0, float("inf"), 50.0, 0.0, None, 0.0, 1e300],
        "end": [None, 1.0, 0.5, 1.0, 3.0, None, 60.0, 2.0, None, float("inf"), None],
    }
    (tmp_path / "films").mkdir()
    examples, rejects = read(video_config(write_list(tmp_path / f"list.{suffix}", rows), strides=[2]))
    assert {example.inputs for example in examples} == {(0,)}
    assert [(reject.input, reject.reason) for reject in rejects] == [
        (1, Reason.MISSING),
        (2, Reason.BAD_ANNOTATION),
        (3, Reason.BAD_ANNOTATION),
        (4, Reason.BAD_ANNOTATION),
        (5, Reason.BAD_ANNOTATION),
        (6, Reason.TOO_SHORT),
        (7, Reason.BAD_URL),
        (8, Reason.MISSING),
        (9, Reason.BAD_ANNOTATION),
        (10, Reason.BAD_ANNOTATION),
    ]
    assert rejects[6].origin == f"list.{suffix} row 7"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"file,caption\nx.mp4,hello\n"),  # no column that we know
        ("a.csv", b"path,start\nx.mp4,later\n"),
        ("a.csv", b"path,start\nx.mp4\n"),
        ("a.csv", b""),
        ("a.parquet", b"PAR1 is not all"),
        ("a.tsv", b"path\n\xff\xfe\n"),
    ],
)
def test_a_list_that_is_none_is_an_error_that_names_it(tmp_path, name, content):
    with pytest.raises(SourceError, match=name):
        planned(put(tmp_path / name, content))


def test_a_list_with_a_name_of_its_own_kind_needs_the_format(tmp_path, clip):
    put(tmp_path / "a.mp4", clip)
    listed = put(tmp_path / "list.txt", b"path\na.mp4\n")
    assert origins(listed, format="list") == ["a.mp4"]
    with pytest.raises(SourceError):
        planned(listed)


class Films(BaseHTTPRequestHandler):
    """Answers by path."""

    answers: dict[str, tuple[int, bytes]] = {}

    def do_GET(self) -> None:
        status, body = Films.answers.get(self.path, (404, b"not here"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Films.answers = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Films) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_list_of_addresses(tmp_path, clip, server):
    Films.answers = {
        "/good.mp4": (200, clip),
        "/big.mp4": (200, clip + bytes(1 << 20)),
        "/page.mp4": (200, b"<html>sorry</html>"),
        "/busy.mp4": (503, b""),
    }
    urls = [f"{server}/{name}.mp4" for name in ("good", "good", "gone", "page", "big", "busy")]
    urls += ["file:///etc/passwd", "ftp://127.0.0.1/a.mp4"]
    rows = {"url": urls, "start": [None, 0.4, *[None] * 6], "end": [None, 1.2, *[None] * 6]}
    place = write_list(tmp_path / "list.csv", rows)
    config = video_config(place, strides=[1], fetch=FETCH | {"max_bytes": len(clip) + 1000})
    examples, rejects = read(config)
    assert [(example.pictures[0].origin, numbers(example)[0]) for example in examples] == [
        (urls[0], 0),
        (urls[0], 16),
        (urls[1], 10),
    ]
    assert all(shown_numbers(example) == numbers(example) for example in examples)
    assert [(reject.input, reject.reason) for reject in rejects] == [
        (2, Reason.HTTP_404),
        (3, Reason.NOT_VIDEO),
        (4, Reason.TOO_LARGE),
        (5, Reason.HTTP_5XX),
        (6, Reason.BAD_URL),
        (7, Reason.BAD_URL),
    ]


def test_addresses_of_this_machine_are_refused_by_default(tmp_path, clip, server):
    Films.answers = {"/good.mp4": (200, clip)}
    place = write_list(tmp_path / "list.csv", {"url": [f"{server}/good.mp4"]})
    _, (reject,) = read(video_config(place))
    assert reject.reason == Reason.BLOCKED_ADDRESS


def test_natural_order():
    names = ["f10.png", "f2.png", "f1.png", "g1.png", "f02b.png", "f.png", "f1-10.png", "f1-9.png", f"f{'9' * 30}.png"]
    assert sorted(names, key=natural_key) == [
        "f1-9.png", "f1-10.png", "f1.png", "f2.png", "f02b.png", "f10.png", f"f{'9' * 30}.png", "f.png", "g1.png",
    ]  # fmt: skip


def test_folders_of_frames_are_clips_in_the_order_of_their_numbers(tmp_path):
    for number in range(20):
        put(tmp_path / "a" / f"frame_{number}.png", picture_bytes(number))
        put(tmp_path / "b" / "c" / f"{100 - number:03d}.jpg", picture_bytes(100 - number, "jpg"))
    put(tmp_path / "lone" / "1.png", picture_bytes(1))
    put(tmp_path / "a" / "notes.txt")
    examples, rejects = read(video_config(tmp_path, strides=[1], layouts={"frames": 1.0}))
    assert rejects == []
    assert [example.group for example in examples] == ["a", "b/c"]
    assert shown_numbers(examples[0]) == [*range(16)] == numbers(examples[0])
    assert shown_numbers(examples[1]) == [*range(81, 97)]
    assert examples[0].pictures[0].size == (128, 96)


def test_one_folder_of_frames_alone(tmp_path):
    for number in range(16):
        put(tmp_path / "clip" / f"{number}.png", picture_bytes(number))
    (example,), rejects = read(video_config(tmp_path / "clip", strides=[1]))
    assert rejects == []
    assert example.group == "clip"
    assert shown_numbers(example) == [*range(16)]


def test_a_damaged_frame_costs_the_windows_that_need_it(tmp_path):
    for number in range(40):
        put(tmp_path / "in" / "a" / f"{number}.png", picture_bytes(number))
    put(tmp_path / "in" / "a" / "3.png", picture_bytes(3)[:300])
    put(tmp_path / "in" / "b" / "0.png", b"no picture")
    put(tmp_path / "in" / "b" / "1.png", b"no picture")
    counts, rejects = ingest(video_config(tmp_path / "in", strides=[1], min_frames=2), tmp_path / "d")
    assert (counts["inputs"], counts["used"], counts["sequences"], counts["partial"]) == (2, 1, 1, 1)
    assert [(row["origin"], row["reason"], row["partial"]) for row in rejects] == [
        ("a", "truncated", True),
        ("b", "truncated", False),
    ]
    assert rejects[0]["detail"] == "of 2 windows 1 with frames that cannot be decoded"


def test_frames_of_different_sizes_are_no_clip(tmp_path):
    for number in range(16):
        put(tmp_path / "a" / f"{number}.png", picture_bytes(number, size=(128, 96) if number < 9 else (96, 128)))
    examples, (reject,) = read(video_config(tmp_path, strides=[1]))
    assert examples == []
    assert reject.reason == Reason.NOT_VIDEO
    assert "frame 9" in reject.detail


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_each_folder_of_a_tar_is_a_clip(tmp_path):
    files = {f"one/{number}.png": picture_bytes(number) for number in (*range(10, 20), *range(10))}
    files |= {f"two/deep/f{number}.jpg": picture_bytes(50 + number, "jpg") for number in range(16)}
    files |= {f"{number}.png": picture_bytes(200 + number) for number in range(16)}
    files |= {"one/readme.txt": b"x", "../out.png": b"x"}
    write_tar(tmp_path / "sub" / "a.tar", files)
    examples, rejects = read(video_config(tmp_path, strides=[1]))
    found = {example.group: shown_numbers(example) for example in examples}
    assert found == {
        "sub/a.tar": [*range(200, 216)],
        "sub/a.tar/one": [*range(16)],
        "sub/a.tar/two/deep": [*range(50, 66)],
    }
    assert [(reject.origin, reject.reason) for reject in rejects] == [("sub/a.tar/..", Reason.TOO_SHORT)]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "sub"]  # nothing was extracted


def test_bad_tars(tmp_path):
    whole = write_tar(tmp_path / "a.tar", {f"x/{n}.png": picture_bytes(n) for n in range(16)}).read_bytes()
    put(tmp_path / "cut.tar", whole[: len(whole) // 2])
    put(tmp_path / "empty.tar")
    put(tmp_path / "text.tar", b"not a tar\n" * 200)
    write_tar(tmp_path / "words.tar", {"a.txt": b"hello"})
    counts, rejects = ingest(video_config(tmp_path, strides=[1]), tmp_path / "d")
    assert (counts["inputs"], counts["used"]) == (5, 1)
    assert {row["origin"]: row["reason"] for row in rejects} == {
        "cut.tar": "truncated",
        "empty.tar": "truncated",
        "text.tar": "truncated",
        "words.tar": "too_short",
    }


def test_a_tar_changed_after_planning_is_a_reject(tmp_path):
    place = write_tar(tmp_path / "a.tar", {f"x/{n}.png": picture_bytes(n) for n in range(16)})
    source = VideoSource(video_config(tmp_path, strides=[1]))
    (unit,) = source.plan()
    place.unlink()
    (reject,) = source.read(unit, Seeds(0))
    assert isinstance(reject, Reject)
    assert reject.reason == Reason.MISSING


def test_what_is_there_first_wins_unless_the_format_is_given(tmp_path, clip):
    put(tmp_path / "a.mp4", clip)
    write_tar(tmp_path / "b.tar", {"1.png": picture_bytes(1)})
    put(tmp_path / "c" / "1.png", picture_bytes(1))
    put(tmp_path / "c" / "2.png", picture_bytes(2))
    assert origins(tmp_path) == origins(tmp_path, format="files") == ["a.mp4"]
    assert origins(tmp_path, format="tars") == ["b.tar"]
    assert origins(tmp_path, format="frames") == ["c"]


def test_planning_decodes_nothing(tmp_path, monkeypatch):
    """Of small files not even the header is read."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    put(tmp_path / "a.mp4", b"x")
    monkeypatch.setattr(VideoDecoder, "_ask", refuse)
    assert origins(tmp_path) == ["a.mp4"]
