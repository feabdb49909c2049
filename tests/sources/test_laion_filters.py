"""Filters before downloading and checks after it: which input is refused and why, and what is not even asked for."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests_support import smooth_photo

from uvd.pipeline.config import config_entry
from uvd.sequences import Example, Reject, Seeds
from uvd.sequences.phash import distance, phash
from uvd.sequences.reject import RejectedInput
from uvd.sources.image_checks import ImageCheckConfig, ImageChecks
from uvd.sources.laion import LaionConfig, LaionSource
from uvd.sources.url_columns import ROWS, to_rows
from uvd.sources.url_filters import ListFilters

NAN = float("nan")


def reasons(rows: list[dict[str, Any]], **filters: Any) -> list[str | None]:
    """Reason of each row, None for those that pass."""
    verdicts = ListFilters(**filters).verdicts(to_rows(rows))
    assert all("\n" not in verdict.detail and verdict.detail for verdict in verdicts.values())
    return [str(verdicts[number].reason) if number in verdicts else None for number in range(len(rows))]


@pytest.mark.parametrize(
    ("filters", "column", "passes", "fails", "reason"),
    [
        ({"max_punsafe": 0.5}, "punsafe", [0, 0.5, -1], [0.5001, 1, float("inf")], "filtered_punsafe"),
        ({"max_pwatermark": 0.8}, "pwatermark", [0.8], [0.81], "filtered_pwatermark"),
        ({"min_similarity": 0.3}, "similarity", [0.3, 1], [0.29, -1], "filtered_similarity"),
        ({"min_aesthetic": 5}, "aesthetic", [5, "6.5"], [4.9, "4"], "filtered_aesthetic"),
    ],
)
def test_bounds_are_inclusive_and_missing_values_have_a_rule(filters, column, passes, fails, reason):
    rows: list[dict[str, Any]] = [{column: value} for value in [*passes, *fails]]
    assert reasons(rows, **filters) == [None] * len(passes) + [reason] * len(fails)
    missing: list[dict[str, Any]] = [{}, {column: None}, {column: NAN}, {column: "unknown"}, {column: ""}]
    assert reasons(missing, **filters) == [None] * 5
    assert reasons(missing, missing="drop", **filters) == [reason] * 5


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (200, 300, None),
        (100, 200, None),
        (99, 150, "filtered_side"),
        (150, 99, "filtered_side"),
        (100, 201, "filtered_aspect"),
        (401, 200, "filtered_aspect"),
        (10, 1000, "filtered_side"),
        (None, 50, None),
        (0, 50, None),
        (NAN, 50, None),
    ],
)
def test_sides_and_aspect(width, height, expected):
    rows = [{"width": width, "height": height}]
    assert reasons(rows, min_side=100, max_aspect=2) == [expected]
    if expected is None and not (width and width == width):
        assert reasons(rows, min_side=100, missing="drop") == ["filtered_side"]


def test_the_first_filter_in_the_stated_order_is_the_reason():
    row = {"width": 1, "height": 9, "punsafe": 1, "pwatermark": 1, "similarity": 0, "aesthetic": 0, "url": "http://a.b"}
    bounds: dict[str, Any] = {
        "min_side": 5,
        "max_aspect": 2,
        "max_punsafe": 0.5,
        "max_pwatermark": 0.5,
        "min_similarity": 0.5,
        "min_aesthetic": 5,
        "deny_hosts": ["a.b"],
    }
    order = ["side", "aspect", "punsafe", "pwatermark", "similarity", "aesthetic", "host"]
    for name in order:
        assert reasons([row], **bounds) == [f"filtered_{name}"]
        del bounds[next(iter(bounds))]


@pytest.mark.parametrize(
    ("url", "denied"),
    [
        ("http://example.com/a.jpg", True),
        ("https://EXAMPLE.com:8080/a.jpg", True),
        ("http://example.com./a.jpg", True),
        ("http://www.example.com/a.jpg", False),
        ("http://notexample.com/a.jpg", False),
        ("http://example.com.evil.net/a.jpg", False),
        ("http://evil.net/example.com/a.jpg", False),
        ("http://evil.net/?http://example.com/", False),
        ("http://shop.net/a.jpg", True),
        ("http://img.shop.net/a.jpg", True),
        ("http://a.b.c.d.e.shop.net/a.jpg", True),
        ("http://xshop.net/a.jpg", False),
        ("http://bücher.de/a.jpg", True),
        ("http://xn--bcher-kva.de/a.jpg", True),
        ("http://a.co.uk/a.jpg", False),
        ("http://x.a.co.uk/a.jpg", False),
        ("http://x.b.co.uk/a.jpg", True),
    ],
)
def test_hosts(url, denied):
    hosts = ["Example.com", ".shop.net", "bücher.de", ".b.co.uk"]
    assert reasons([{"url": url}], deny_hosts=hosts) == ["filtered_host" if denied else None]
    assert reasons([{"url": url}], allow_hosts=hosts) == [None if denied else "filtered_host"]
    assert reasons([{"url": url}], allow_hosts=hosts, deny_hosts=hosts) == ["filtered_host"]


@pytest.mark.parametrize("url", [None, "", "ftp://example.com/a", "http://", "http://user:pw@example.com/"])
def test_what_is_no_url_is_left_to_fetching(url):
    """It is refused as `bad_url` there, whatever is asked of hosts and missing values."""
    assert reasons([{"url": url}], allow_hosts=["example.com"], missing="drop") == [None]
    assert reasons([{"url": url}], deny_hosts=["example.com"], missing="drop") == [None]


def test_large_host_lists_are_look_ups():
    hosts = [f"{'.' * (number % 2)}host{number}.example" for number in range(50_000)]
    rows = [{"url": f"http://www.host{number}.example/"} for number in range(6)]
    assert reasons(rows, deny_hosts=hosts) == [None, "filtered_host"] * 3


@pytest.mark.parametrize("host", ["", ".", "a b", "http://a.b/"])
def test_a_host_that_is_none_is_a_wrong_config(host):
    with pytest.raises(ValueError, match="is not a host"):
        ListFilters(deny_hosts=(host,))


def test_an_empty_unit_has_no_verdicts():
    assert ListFilters(max_punsafe=0.5, deny_hosts=("a.b",)).verdicts(ROWS.empty_table()) == {}


def test_filters_and_checks_are_part_of_the_fingerprint():
    def entry(**settings: Any) -> str:
        return config_entry(LaionConfig(dataset="d", input="/a", **settings))["fingerprint"]

    assert len({entry(), entry(filters={"max_punsafe": 0.5}), entry(checks={"duplicates": False})}) == 3
    assert entry(filters={"deny_hosts": ["b.c", "A.b"]}) == entry(filters={"deny_hosts": ["a.b", "b.c", "a.b"]})


# After downloading.


def verdict(action: Any, *arguments: Any) -> str | None:
    try:
        action(*arguments)
    except RejectedInput as rejected:
        return f"{rejected.reason}: {rejected.detail}"
    return None


def photo(seed: int) -> np.ndarray:
    return smooth_photo(seed, 256, 256)


def test_the_first_of_equal_files_is_kept():
    checks = ImageChecks(ImageCheckConfig())
    checks.picture(photo(1), "http://a", checks.file(b"1"))
    assert verdict(checks.file, b"1") == "duplicate: same file as http://a"
    assert verdict(checks.file, b"2") is None
    kept = ImageChecks(ImageCheckConfig(duplicates=False))
    kept.picture(photo(1), "http://a", kept.file(b"1"))
    assert verdict(kept.file, b"1") is None


def test_a_file_that_was_refused_is_no_original():
    checks = ImageChecks(ImageCheckConfig())
    assert verdict(checks.picture, np.full((256, 256, 3), 7, np.uint8), "http://a", checks.file(b"1")) is not None
    assert verdict(checks.file, b"1") is None


@pytest.mark.parametrize(("bits", "alike"), [(None, False), (0, False), (8, True)])
def test_near_duplicates(bits, alike):
    checks = ImageChecks(ImageCheckConfig(near_duplicate_bits=bits))
    checks.picture(photo(1), "http://a", b"")
    checks.picture(photo(2), "http://b", b"")
    shifted = np.ascontiguousarray(np.roll(photo(2), 2, axis=1))
    assert 0 < distance(phash(photo(2)), phash(shifted)) <= 8
    assert verdict(checks.picture, shifted, "http://c", b"") == (
        "near_duplicate: much like http://b" if alike else None
    )
    assert verdict(checks.picture, photo(3), "http://d", b"") is None


@pytest.mark.parametrize(
    ("pixels", "constant"),
    [
        (np.full((256, 256, 3), 255, np.uint8), True),
        (np.full((256, 256, 3), 255, np.uint8) - np.eye(256, dtype=np.uint8)[..., None], True),
        (
            np.stack([np.tile(np.arange(256, dtype=np.uint8), (256, 1)), *[np.zeros((256, 256), np.uint8)] * 2], 2),
            False,
        ),
        (photo(0), False),
    ],
)
def test_near_constant(pixels, constant):
    found = verdict(ImageChecks(ImageCheckConfig()).picture, pixels, "http://a", b"")
    assert (found is not None and found.startswith("filtered_constant")) == constant
    assert verdict(ImageChecks(ImageCheckConfig(min_deviation=0)).picture, pixels, "http://a", b"") is None


def test_aspect_of_the_image():
    checks = ImageChecks(ImageCheckConfig(max_aspect=2))
    assert [verdict(checks.shape, *size) for size in ((200, 100), (100, 200), (201, 100), (100, 201))] == [
        None,
        None,
        "filtered_aspect: 201x100, max_aspect is 2",
        "filtered_aspect: 100x201, max_aspect is 2",
    ]


def test_hashes():
    checks = ImageChecks(ImageCheckConfig(verify_hash=True))
    good = (hashlib.md5(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest().upper(), None, "")
    assert [verdict(checks.file, b"x", listed) for listed in good] == [None] * 4
    for listed in (hashlib.md5(b"y").hexdigest(), hashlib.sha256(b"y").hexdigest(), "1234567"):
        assert str(verdict(checks.file, b"x", listed)).startswith("hash_mismatch")
    assert verdict(ImageChecks(ImageCheckConfig()).file, b"x", "1234567") is None


# Both, over HTTP.


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """`http://127.0.0.1:PORT`, where `/SEED-DELAY.png` is a photo after that many milliseconds; and the paths asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.removeprefix("/").partition(".")[0]
            if not name.partition("-")[2].isdigit():
                body = b""
                self.send_response(404)
            else:
                seed, _, delay = name.partition("-")
                stopped.wait(int(delay) / 1000)
                body = cv2.imencode(".png", smooth_photo(int(seed), 100, 130))[1].tobytes()
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    stopped = threading.Event()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    stopped.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_filtered_rows_are_not_asked_for_and_the_first_row_of_equal_images_wins(server, tmp_path):
    """The first of the equal images arrives last."""
    address, asked = server
    rows = [
        ("1-300.png", 0.1),
        ("2-0.png", 0.9),
        ("1-0.png", 0.1),
        ("none", None),
        ("1-1.png", NAN),
        ("3-0.png", 0.5),
    ]
    table = pa.table(
        {
            "URL": [f"{address}/{name}" for name, _ in rows],
            "punsafe": [unsafe for _, unsafe in rows],
            "TEXT": ["caption"] * len(rows),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    config = LaionConfig.model_validate(
        {
            "dataset": "d",
            "input": tmp_path,
            "filters": {"max_punsafe": 0.5},
            "fetch": {"allow_private_hosts": True, "honour_robots_txt": False},
        }
    )
    source = LaionSource(config)
    (unit,) = source.plan()
    items = list(source.read(unit, Seeds(0)))
    found = [str(item.reason) if isinstance(item, Reject) else "used" for item in items]
    assert found == ["used", "filtered_punsafe", "duplicate", "http_404", "duplicate", "used"]
    assert [item.inputs[0] if isinstance(item, Example) else item.input for item in items] == list(range(6))
    assert isinstance(items[1], Reject)
    assert items[1].detail == "0.9, max_punsafe is 0.5"
    assert sorted(asked) == sorted(f"/{name}" for name, _ in rows if name != "2-0.png")
