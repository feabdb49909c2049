"""The `laion` source over a real HTTP server: every row of the lists is accounted for, and no caption goes further."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import dataset_bytes, smooth_photo, write_photo

from uvd.manifests import Dataset, read_image_shard
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.sequences import Example, Reject, Seeds
from uvd.sources.base import SourceError
from uvd.sources.laion import LaionConfig, LaionSource

CAPTION = "a caption that nobody may ever read again"
FETCH = {"allow_private_hosts": True, "backoff_s": 0.01, "retries": 1, "total_timeout_s": 5.0}


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`http://127.0.0.1:PORT` of a folder with ten photos, a truncated one, a page under an image name, a tiny one."""
    folder = tmp_path_factory.mktemp("www")
    for seed in range(10):
        write_photo(folder / f"{seed}.jpg", seed)
    (folder / "half.jpg").write_bytes((folder / "0.jpg").read_bytes()[:4000])
    (folder / "page.jpg").write_text("<html>gone</html>")
    write_photo(folder / "tiny.png", 3, 40, 40)
    httpd = Server(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def write_list(path: Path, urls: list[str | None], column: str = "URL", group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    captions = [f"{CAPTION} {number}" for number in range(len(urls))]
    table = pa.table({"TEXT": captions, column: pa.array(urls, pa.string()), "similarity": [0.3] * len(urls)})
    pq.write_table(table, path, row_group_size=group)
    return path


def config(place: Path, **settings: Any) -> LaionConfig:
    return LaionConfig.model_validate({"dataset": "d", "input": place, "fetch": FETCH} | settings)


def ingest(config: LaionConfig, out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Makes all shards in this process: rows of the manifests and of the rejects."""
    dataset, entry = Dataset(str(out)), config_entry(config)
    dataset.declare("sequences", config.folder, entry)
    for job in plan(dataset, config, entry["fingerprint"]):
        counts = make_shard(job).counts
        assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
    shards = dataset.shards(f"sequences/{config.folder}")
    assert verify(dataset, deep=True).problems == []
    return (
        [row for shard in shards for row in dataset.manifest(shard).to_pylist()],
        [row for shard in shards for row in dataset.rejects(shard).to_pylist()],
    )


def test_every_row_becomes_a_picture_or_a_reject(photos, tmp_path):
    bad: dict[str | None, str] = {
        f"{photos}/none.jpg": "http_404",
        f"{photos}/half.jpg": "truncated",
        f"{photos}/page.jpg": "not_image",
        f"{photos}/tiny.png": "too_small",
        "file:///etc/hostname": "bad_url",
        f"http://127.0.0.1:{closed_port()}/a.jpg": "connect",
        None: "bad_url",
    }
    good = [f"{photos}/{number}.jpg" for number in range(10)]
    urls: list[str | None] = [*good[:5], *bad, *good[5:]]
    listed = write_list(tmp_path / "list.parquet", urls)
    rows, rejects = ingest(config(listed, shard_size=6, image_codec="lossless"), tmp_path / "d")
    assert [row["origins"] for row in rows] == [[url] for url in good]
    assert {(*row["widths"], *row["heights"]) for row in rows} == {(400, 300)}
    assert {row["origin"] or None: row["reason"] for row in rejects} == bad
    assert len(rejects) == len(bad)


def test_pictures_are_those_of_their_urls(photos, tmp_path):
    order = [7, 1, 9, 0, 3]
    listed = write_list(tmp_path / "list.parquet", [f"{photos}/{number}.jpg" for number in order])
    ingest(config(listed), tmp_path / "d")
    dataset = Dataset(str(tmp_path / "d"))
    (shard,) = dataset.shards("sequences/laion")
    for number, stored in zip(order, read_image_shard(dataset, shard), strict=True):
        expected = smooth_photo(number)[:, 50:350, ::-1].mean((0, 1))  # photos are written as BGR
        assert stored.pictures()[0].mean((0, 1)) == pytest.approx(expected, abs=2)


def test_captions_are_in_no_byte_that_is_written(photos, tmp_path):
    urls = [f"{photos}/{name}" for name in ("0.jpg", "1.jpg", "none.jpg", "page.jpg")]
    listed = write_list(tmp_path / "list.parquet", urls)
    ingest(config(listed), tmp_path / "d")
    dataset = Dataset(str(tmp_path / "d"))
    (shard,) = dataset.shards("sequences/laion")
    # Parquet pages are compressed, so their content is searched as well as the files.
    content = dataset_bytes(tmp_path / "d")
    content |= {"rows": str(dataset.manifest(shard).to_pylist()).encode()}
    content |= {"rejects": str(dataset.rejects(shard).to_pylist()).encode()}
    assert len(content) == 6
    for name, data in content.items():
        assert b"caption" not in data.lower(), name
        assert b"nobody may ever" not in data.lower(), name
        assert name == "dataset.json" or b"similarity" not in data.lower(), name


@pytest.mark.parametrize(("written", "asked"), [("URL", "url"), ("url", "URL"), ("image_Url", "IMAGE_URL")])
def test_the_column_is_found_without_regard_to_case(tmp_path, written, asked):
    listed = write_list(tmp_path / "list.parquet", ["ftp://a", "ftp://b"], written)
    source = LaionSource(config(listed, columns={"url": asked}))
    (unit,) = source.plan()
    assert [item.origin for item in source.read(unit, Seeds(0)) if isinstance(item, Reject)] == ["ftp://a", "ftp://b"]


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path):
    write_list(tmp_path / "lists" / "a.parquet", ["ftp://a"])
    write_list(tmp_path / "lists" / "b.parquet", ["ftp://b"], "link")
    with pytest.raises(SourceError, match=r"b\.parquet has no column 'url' or 'image_url'; it has TEXT, link, sim"):
        list(LaionSource(config(tmp_path / "lists")).plan())


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "footer", "folder", "missing"])
def test_what_is_not_parquet_is_an_error_that_names_it(tmp_path, damage):
    place = write_list(tmp_path / "list.parquet", [f"http://example.org/{n}" for n in range(1000)])
    whole = place.read_bytes()
    if damage == "text":
        place.write_text("url\nhttp://example.org/a.jpg\n")
    elif damage == "empty":
        place.write_bytes(b"")
    elif damage == "cut":
        place.write_bytes(whole[: len(whole) // 2])
    elif damage == "footer":
        place.write_bytes(whole[:-200] + bytes(192) + whole[-8:])
    else:
        place.unlink()
        if damage == "folder":
            place.mkdir()
    with pytest.raises(SourceError, match=str(place)):
        list(LaionSource(config(place)).plan())


def offline(units: LaionSource) -> list[str]:
    """The URLs of all units, in order, none of which can be fetched."""
    origins = []
    for unit in units.plan():
        items = list(units.read(unit, Seeds(0)))
        assert [item.input for item in items if isinstance(item, Reject)] == list(range(unit.num_inputs))
        origins += [item.origin for item in items if isinstance(item, Reject)]
    return origins


@pytest.mark.parametrize("shard_size", [1, 7, 10, 25, 1000])
def test_row_ranges_cover_every_row_once(tmp_path, shard_size):
    """Three files of 23, 0 and 31 rows in groups of 10 and 4, one of them deeper."""
    urls = [f"ftp://{number}" for number in range(54)]
    write_list(tmp_path / "lists" / "a.parquet", list(urls[:23]), group=10)
    write_list(tmp_path / "lists" / "b.parquet", [])
    write_list(tmp_path / "lists" / "c" / "d.parquet", list(urls[23:]), "url", group=4)
    (tmp_path / "lists" / "readme.txt").write_text("no list")
    source = LaionSource(config(tmp_path / "lists", shard_size=shard_size))
    units = list(source.plan())
    assert [unit.shard for unit in units] == list(range(len(units)))
    assert all(1 <= unit.num_inputs <= shard_size for unit in units)
    assert offline(source) == urls


@pytest.mark.parametrize("limit", [1, 9, 10, 23, 24, 53, 54, 100])
def test_the_limit_counts_over_all_files(tmp_path, limit):
    urls = [f"ftp://{number}" for number in range(54)]
    write_list(tmp_path / "lists" / "a.parquet", list(urls[:23]), group=10)
    write_list(tmp_path / "lists" / "c.parquet", list(urls[23:]))
    assert offline(LaionSource(config(tmp_path / "lists", limit=limit, shard_size=10))) == urls[:limit]


def test_a_url_that_is_not_utf8_is_one_reject(photos, tmp_path):
    """Parquet does not check that strings are UTF-8, and crawls hold some that are not."""
    good = f"{photos}/0.jpg".encode()
    raw = [good, b"http://example.org/caf\xe9.jpg", f"{photos}/1.jpg".encode()]
    offsets = pa.array([0, *(sum(map(len, raw[: n + 1])) for n in range(3))], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"".join(raw))])
    pq.write_table(pa.table({"url": column}), tmp_path / "list.parquet")
    source = LaionSource(config(tmp_path / "list.parquet"))
    (unit,) = source.plan()
    items = list(source.read(unit, Seeds(0)))
    assert [isinstance(item, Example) for item in items] == [True, False, True]


def test_twice_the_same_bytes(photos, tmp_path):
    listed = write_list(tmp_path / "list.parquet", [f"{photos}/{n}.jpg" for n in (0, 1, "none", 2)])
    for name in ("one", "two"):
        ingest(config(listed, resize="random_crop", shard_size=2), tmp_path / name)
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")


def test_how_fast_is_no_part_of_what(tmp_path):
    """Retries and timeouts may change between two runs of one dataset; opt-outs may not."""
    listed = write_list(tmp_path / "list.parquet", ["ftp://a"])
    base = config_entry(config(listed))["fingerprint"]
    assert config_entry(config(listed, fetch=FETCH | {"retries": 7, "concurrency": 3}))["fingerprint"] == base
    assert config_entry(config(listed, fetch=FETCH | {"honour_opt_outs": False}))["fingerprint"] != base
