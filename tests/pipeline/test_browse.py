"""Pages of a dataset: each sequence on one page, each read once, no page without bound, nothing hostile let through."""

from __future__ import annotations

import io
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browse_support import HOSTILE, URL, Zeros, pixels, write_dataset, write_shard, write_tokens
from PIL import Image
from starlette.testclient import TestClient
from tests_support import dataset_bytes

from uvd.manifests import Dataset, DatasetError, blocks
from uvd.manifests import survey as survey_module
from uvd.manifests.dataset import Shard
from uvd.manifests.dedup import DedupSettings, find_duplicates
from uvd.manifests.selection import Selection
from uvd.manifests.storage import Storage
from uvd.manifests.subset import subset
from uvd.manifests.survey import survey
from uvd.pipeline.browse import catalog as catalog_module
from uvd.pipeline.browse import listing as listing_module
from uvd.pipeline.browse.app import Browser, shown_address
from uvd.pipeline.browse.catalog import Catalog, Cursor
from uvd.pipeline.browse.filters import Filter, FilterError
from uvd.pipeline.browse.near import NEAREST, NeighbourSearch
from uvd.pipeline.browse.pictures import Kept, PictureError, media_type

FILTERS = (
    Filter(),
    Filter(source="pairs"),
    Filter(layout="single"),
    Filter(split="val"),
    Filter(role="pose"),
    Filter(role="boxes", layout="tuples"),
    Filter(origin="plain/file.jpg"),
    Filter(origin="http*"),
    Filter(origin="pose/*", split="train", source="pairs"),
    Filter(layout="nothing is of it"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(str(tmp_path_factory.mktemp("browse") / "d"))


@pytest.fixture
def client(made: Dataset) -> TestClient:
    browser = Browser(made)
    browser.catalog.prepare()
    return TestClient(browser.app(["127.0.0.1"]), base_url="http://127.0.0.1", raise_server_exceptions=False)


def expected(dataset: Dataset, wanted: Filter) -> list[str]:
    """Keys by a plain scan of all rows."""

    def fits(row: dict[str, Any]) -> bool:
        start = wanted.origin.removesuffix("*")
        origins = [o for o in row["origins"] if o == start or (wanted.origin.endswith("*") and o.startswith(start))]
        return (
            (not wanted.layout or row["layout"] == wanted.layout)
            and (not wanted.split or row["split"] == wanted.split)
            and (not wanted.role or wanted.role in row["roles"])
            and (not wanted.origin or bool(origins))
        )

    sources = [wanted.source] if wanted.source else dataset.sources()
    shards = [shard for source in sources for shard in dataset.shards(f"sequences/{source}")]
    return [row["key"] for shard in shards for row in dataset.manifest(shard).to_pylist() if fits(row)]


def walked(catalog: Catalog, wanted: Filter, size: int) -> tuple[list[str], int]:
    """Keys of all pages from the first on, and how many pages there were."""
    keys: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = catalog.page(wanted, cursor, size)
        assert len(page.found) <= size
        keys += [one.row["key"] for one in page.found]
        cursor, pages = None if page.next is None else Cursor.parse(str(page.next)), pages + 1
        assert pages < 200
    return keys, pages


@pytest.mark.parametrize("wanted", FILTERS, ids=str)
def test_every_sequence_is_on_exactly_one_page(made: Dataset, wanted: Filter, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Catalog(made)
    listed.prepare()
    truth = expected(made, wanted)
    for catalog in (Catalog(made), listed):
        for size in (1, 3, 100):
            keys, pages = walked(catalog, wanted, size)
            assert keys == truth
            assert pages == max(1, -(-len(truth) // size))
    if not wanted.origin:
        assert listed.count(wanted) == (len(truth), len(expected(made, Filter(source=wanted.source))))
    monkeypatch.setattr(catalog_module, "EFFORT", 1)
    assert walked(listed, wanted, 3)[0] == truth


def test_one_page_reads_few_manifests(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, read = Catalog(made), []
    monkeypatch.setattr(catalog_module, "EFFORT", catalog_module.ROWS_EFFORT)
    whole = Dataset.manifest
    monkeypatch.setattr(
        Dataset, "manifest", lambda self, shard, columns=None: read.append(shard) or whole(self, shard, columns)
    )
    wanted = Filter(origin="nowhere")
    page = catalog.page(wanted, None, 10)
    assert (page.found, page.gave_up, len(read)) == ([], True, 1)
    assert page.next == Cursor("laion", 1, 0)
    assert walked(catalog, wanted, 10)[1] == 6


def test_the_index_passes_over_shards_and_is_not_believed_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SIZE", 2)
    monkeypatch.setattr(survey_module, "KEPT_FROM", 1)
    dataset = Dataset(str(tmp_path / "d"))
    single, pair = ("single", "train", ("image",), ("a",)), ("pairs", "val", ("image", "pose"), ("b", "b"))
    for number in range(8):
        write_shard(dataset, "s", number, [pair if number == 5 else single] * (number + 1))
    for path in Path(dataset.uri).rglob("*.parquet"):
        os.utime(path, (1e9, 1e9))
    assert survey(dataset).index == "written"
    footers: list[int] = []
    read = blocks.read_shard
    for module in (catalog_module, listing_module):
        monkeypatch.setattr(module, "read_shard", lambda d, shard: footers.append(shard.number) or read(d, shard))
    catalog, wanted = Catalog(dataset), Filter(role="pose")
    catalog.prepare()
    assert walked(catalog, wanted, 4) == (expected(dataset, wanted), 2)
    assert set(footers) == {4, 5}  # the one block of two that has such a picture
    assert catalog.count(Filter()) == (36, 36)
    drawn = [one.row["key"] for seed in range(100) for one in catalog.draw(Filter(), seed, 4).found]
    # 400 draws from 36 sequences, by way of the index: 11 each, give or take three and a bit.
    assert set(drawn) == set(expected(dataset, Filter()))
    assert max(Counter(drawn).values()) < 35
    one = catalog.draw(wanted, 0, 9)
    assert sorted(found.row["key"] for found in one.found) == expected(dataset, wanted)

    write_shard(dataset, "s", 0, [pair])
    write_shard(dataset, "s", 11, [pair] * 2)
    assert walked(catalog, wanted, 4)[0] == expected(dataset, wanted)
    assert len(expected(dataset, wanted)) == 9
    catalog.prepare()
    assert catalog.count(wanted) == (9, 38)


def test_random_draws_are_even_and_the_same_for_a_seed(made: Dataset) -> None:
    catalog = Catalog(made)
    truth = expected(made, Filter())
    drawn = [one.row["key"] for seed in range(200) for one in catalog.draw(Filter(), seed, 2).found]
    counts = Counter(drawn)
    assert set(counts) == set(truth)
    # 21 sequences, 400 draws: 19 each, with a standard deviation of 4.
    assert all(3 < count < 40 for count in counts.values())
    assert catalog.draw(Filter(), 7, 5) == Catalog(made).draw(Filter(), 7, 5)
    poses = catalog.draw(Filter(role="pose"), 0, 50)
    assert sorted(one.row["key"] for one in poses.found) == expected(made, Filter(role="pose"))
    assert (poses.of, poses.sampled) == (6, 0)
    assert catalog.draw(Filter(layout="none"), 0, 5).of == 0


def test_where_footers_are_too_many_some_stand_for_all(made: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "EFFORT", 2)
    monkeypatch.setattr(catalog_module, "SAMPLED", 2)
    drawn = Catalog(made).draw(Filter(source="laion"), 0, 4)
    assert (drawn.of, drawn.sampled, len(drawn.found)) == (12, 2, 4)


def test_pictures_are_read_once_and_sent_as_they_lie(
    client: TestClient, made: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ranges = dataset_bytes(Path(made.uri)), []
    read = Storage.read_range
    monkeypatch.setattr(Storage, "read_range", lambda self, *place: ranges.append(place) or read(self, *place))
    keys = expected(made, Filter())
    assert client.get("/?size=96").status_code == 200
    manifests: list[object] = []
    whole = Dataset.manifest
    monkeypatch.setattr(Dataset, "manifest", lambda self, *of: manifests.append(of) or whole(self, *of))
    types = set()
    for key in keys:
        count = 16 if key.startswith("video") else 4 if "pairs" in key and not key.endswith("3") else 1
        for number in range(count):
            answer = client.get(f"/picture/{key}/{number}")
            types.add(answer.headers["content-type"])
            with Image.open(io.BytesIO(answer.content)) as image:
                assert image.size == (256, 256)
    assert types == {"image/jpeg", "image/png"}
    assert len(ranges) == len(keys) == len(set(ranges))
    assert manifests == []  # the page knew the rows
    shown = np.asarray(Image.open(io.BytesIO(client.get("/picture/pairs-000000-000000/1").content)))
    np.testing.assert_array_equal(shown, pixels(1))
    assert dataset_bytes(Path(made.uri)) == before


def test_pages_show_what_is_there(client: TestClient) -> None:
    text = client.get("/?role=boxes&size=2").text
    assert "4 of 21 sequences" in text
    assert text.count('class="card"') == 2
    assert 'href="/?role=boxes&amp;size=2&amp;at=pairs%3A9%3A1"' in text
    text = client.get("/sequence/video-b-000001-000000").text
    assert text.count("/picture/video-b-000001-000000/") == 16
    assert client.get("/find?q=laion-000000-000001", follow_redirects=False).headers["location"].endswith("000001")
    assert "6 of 21" in client.get("/?role=pose").text
    assert "plain/file.jpg" in client.get("/find?q=plain/*").text


def test_a_key_that_is_not_there_gets_the_nearest_ones(client: TestClient) -> None:
    for key, near in (("laion-000000-000009", "laion-000000-000003"), ("pairs-000005-000000", "pairs-000009-000000")):
        answer = client.get(f"/sequence/{key}")
        assert answer.status_code == 404
        assert near in answer.text
    assert client.get("/picture/laion-000000-000009/0").status_code == 404
    assert client.get("/picture/laion-000000-000000/1").status_code == 400


def test_hostile_origins_are_text_and_web_addresses_are_safe_links(client: TestClient) -> None:
    for path in ("/?source=laion", "/sequence/laion-000000-000001", f"/?origin={HOSTILE}"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "javascript:alert(&#34;&lt;script&gt;" in text
        assert 'href="javascript' not in text
    address = URL.replace("&", "&amp;").replace("<b>", "&lt;b&gt;")
    assert f'<a href="{address}" rel="noopener noreferrer" target="_blank">' in client.get("/?source=laion").text


@pytest.mark.parametrize(
    "path",
    [
        "/?at=laion",
        "/?at=laion:-1:0",
        "/?at=laion:0:9999999999999",
        "/?size=100000",
        "/?size=x",
        "/?source=../..",
        "/random?seed=-1",
        "/near/laion-000000-000000/3",
        "/near/laion-000000-000000/0?most=1e9",
        f"/?origin={'x' * 5000}",
    ],
)
def test_addresses_that_make_no_sense_are_refused(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert "Traceback" not in answer.text


def test_nothing_but_its_own_pages_is_given_out(client: TestClient, made: Dataset) -> None:
    for path in ("/static/app.py", "/static/..%2fapp.py", "/sequence/..%2f..%2fdataset.json", "/dataset.json", "/docs"):
        assert client.get(path).status_code == 404
    answer = client.get("/picture/..-000000-000000/0")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    for method in ("post", "put", "delete"):
        assert getattr(client, method)("/").status_code == 405
    assert client.get("/", headers={"host": "rebound.example.org"}).status_code == 400
    for path in ("/", "/picture/laion-000000-000000/0", "/none"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def test_a_bug_shows_no_traceback_and_damage_is_said(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(str(tmp_path / "d"))
    (Path(dataset.uri) / "sequences/pairs/000009.parquet").write_bytes(b"not parquet")
    (Path(dataset.uri) / "sequences/video-b/000001.tar").write_bytes(b"short")
    other = TestClient(Browser(dataset).app(["127.0.0.1"]), base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = other.get("/?source=pairs")
    assert answer.status_code == 500
    assert "uvd verify" in answer.text
    answer = other.get("/picture/video-b-000001-000000/0")
    assert (answer.status_code, "uvd verify" in answer.text) == (404, True)

    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Catalog, "page", broken)
    answer = client.get("/")
    assert (answer.status_code, "a secret" in answer.text) == (500, False)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_neighbours_are_the_nearest_of_the_same_role(made: Dataset) -> None:
    catalog = Catalog(made)
    found = catalog.find("pairs-000000-000000")
    near = NeighbourSearch(catalog).near(found, 1)
    rows = [row for shard in made.all_shards("sequences") for row in made.manifest(shard).to_pylist()]
    own = found.row["phashes"][1]
    truth = {
        (row["key"], number): (own ^ phash).bit_count()
        for row in rows
        for number, (role, phash) in enumerate(zip(row["roles"], row["phashes"], strict=True))
        if role == "pose" and (row["key"], number) != ("pairs-000000-000000", 1)
    }
    assert {(one.found.row["key"], one.picture): one.bits for one in near.nearest} == truth
    assert [one.bits for one in near.nearest] == sorted(truth.values())
    assert (near.searched, near.complete) == (21, True)
    some = NeighbourSearch(catalog).near(catalog.find("laion-000001-000002"), 0, most=5)
    assert (some.searched, some.complete) == (8, False)
    assert all(one.found.shard.number in (0, 1) for one in some.nearest)
    assert len(NeighbourSearch(catalog).near(catalog.find("video-b-000001-000000"), 0).nearest) == 15 < NEAREST
    with pytest.raises(FilterError):
        NeighbourSearch(catalog).near(found, 4)


def test_marks_of_dedup_are_shown(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d"))
    same = ("single", "train", ("image",), ("a",))
    for number in range(2):
        write_shard(dataset, "s", number, [same])
    write_shard(dataset, "t", 0, [same], seed=77)
    find_duplicates(dataset, DedupSettings(bits=0))
    client = TestClient(Browser(dataset).app(["127.0.0.1"]), base_url="http://127.0.0.1")
    text = client.get("/sequence/s-000000-000000").text
    assert "Near-duplicates by" in text
    assert 'href="/sequence/s-000001-000000"' in text
    assert "Near-duplicates by" not in client.get("/sequence/t-000000-000000").text
    near = client.get("/near/s-000000-000000/0").text
    assert "3 sequences searched, which are all" in near
    assert near.index("s-000001-000000") < near.index("t-000000-000000")


@pytest.mark.parametrize("data", [b"<html>", b"\xff\xd8\xff", b"GIF89a" + bytes(50)])
def test_what_is_no_picture_is_not_sent_as_one(data: bytes) -> None:
    with pytest.raises(PictureError):
        media_type("a.jpg", data)


def test_a_picture_of_another_size_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (257, 256)).save(buffer, "PNG")
    with pytest.raises(PictureError, match="257x256"):
        media_type("a.png", buffer.getvalue())
    bomb = bytearray(buffer.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(PictureError):
        media_type("a.png", bytes(bomb))


def test_kept_values_are_made_once_and_weigh_no_more_than_allowed() -> None:
    kept: Kept[bytes] = Kept(10, len)
    made: list[str] = []
    gate = threading.Event()

    def slow(name: str) -> bytes:
        gate.wait(5)
        made.append(name)
        return b"1234"

    threads = [threading.Thread(target=kept.get, args=("a", lambda: slow("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    for name in "bcd":
        kept.get(name, lambda name=name: slow(name))
    kept.get("d", lambda: slow("d again"))
    kept.get("a", lambda: slow("a again"))
    assert made == ["a", "b", "c", "d", "a again"]
    with pytest.raises(DatasetError):
        kept.get("e", lambda: (_ for _ in ()).throw(DatasetError("gone")))
    assert kept.get("e", lambda: b"now") == b"now"


def test_tokens_that_are_not_there_are_said(client: TestClient) -> None:
    answer = client.get("/decoded/laion-000000-000000/0")
    assert answer.status_code == 400
    assert "uvd tokenize" in answer.text


def test_a_view_shows_its_own_rows_and_the_pictures_of_its_base(tmp_path: Path) -> None:
    dataset = write_dataset(str(tmp_path / "d"))
    for shard in dataset.all_shards("sequences"):
        write_tokens(dataset, shard, Zeros("t"))
    subset(dataset, Selection(where="split = 'val'", tokenizer="t"), str(tmp_path / "view"))
    view = Dataset.existing(str(tmp_path / "view"))
    keys, _ = walked(Catalog(view), Filter(), 2)
    assert keys == expected(dataset, Filter(split="val"))
    client = TestClient(Browser(view).app(["127.0.0.1"]), base_url="http://127.0.0.1")
    assert client.get("/picture/pairs-000009-000003/1").headers["content-type"] == "image/png"
    assert "/picture/pairs-000009-000003/0" in client.get("/sequence/pairs-000009-000003").text
    assert client.get("/sequence/pairs-000009-000000").status_code == 404
    assert len(Catalog(view).draw(Filter(), 0, 9).found) == 5


def test_tokens_of_another_tokenizer_of_that_name_are_not_decoded(tmp_path: Path) -> None:
    dataset = write_dataset(str(tmp_path / "d"))
    write_tokens(dataset, Shard("sequences/laion", 0), Zeros("uvd-small"))
    client = TestClient(Browser(dataset).app(["127.0.0.1"]), base_url="http://127.0.0.1")
    assert "decoded by uvd-small" in client.get("/").text
    answer = client.get("/decoded/laion-000000-000000/0")
    assert (answer.status_code, "another tokenizer" in answer.text) == (404, True)
    answer = client.get("/decoded/laion-000001-000000/0")
    assert (answer.status_code, "uvd tokenize" in answer.text) == (404, True)


def test_a_page_does_not_show_the_credentials_of_an_address() -> None:
    assert shown_address("s3://KEY:SECRET@bucket/data?region=x") == "s3://bucket/data"
    assert shown_address("/data/a b") == "/data/a b"


def test_a_dataset_of_tokens_alone_says_so(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d"))
    dataset.declare("tokens", "t/lvm", {"fingerprint": "f"})
    client = TestClient(Browser(dataset).app(["127.0.0.1"]), base_url="http://127.0.0.1")
    assert "no image shards" in client.get("/").text
    assert client.get("/random?seed=1").status_code == 200
