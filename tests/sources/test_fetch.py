"""Fetching against a real HTTP server on loopback that answers in every bad way, and the checks of addresses."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import fetch
from uvd.sources.fetch import BlockedAddressError, FetchConfig, check_address, fetch_in_order, parse_url

LIMIT = 10_000
METADATA_HOSTS = ("169.254.169.254", "10.0.0.1", "[fd00:ec2::254]")


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts what was asked."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    headers_seen: list[dict[str, str]] = []
    running = threading.Event()

    def do_GET(self) -> None:
        Handler.asked[self.path] += 1
        Handler.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        action, _, argument = self.path[1:].partition("/")
        getattr(self, f"answer_{action}")(argument)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_ok(self, argument: str) -> None:
        self.reply(200, b"body " + argument.encode())

    def answer_status(self, argument: str) -> None:
        self.reply(int(argument.partition("/")[0]), b"page")

    def answer_flaky(self, argument: str) -> None:
        """`flaky/503/2/…`: that status twice, then the body."""
        status, failures, _ = argument.split("/")
        if Handler.asked[self.path] <= int(failures):
            return self.reply(int(status), b"busy")
        return self.reply(200, b"at last")

    def answer_hops(self, argument: str) -> None:
        left = int(argument)
        self.reply(302, Location=f"/hops/{left - 1}" if left else "/ok/end")

    def answer_loop(self, argument: str) -> None:
        self.reply(301, Location=self.path)

    def answer_nowhere(self, argument: str) -> None:
        self.reply(302)

    def answer_to(self, argument: str) -> None:
        self.reply(
            307,
            Location={"file": "file:///etc/passwd", "user": "http://me:pw@127.0.0.1/", "bad": "http://[1"}[argument],
        )

    def answer_metadata(self, argument: str) -> None:
        self.reply(302, Location=f"http://{METADATA_HOSTS[int(argument)]}/latest/meta-data/")

    def answer_slow(self, argument: str) -> None:
        """Trickles for longer than any timeout of these tests, but ends with the server."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            while not Handler.running.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            self.close_connection = True

    def answer_late(self, argument: str) -> None:
        time.sleep(float(argument))
        self.reply(200, argument.encode())

    def answer_big(self, argument: str) -> None:
        self.reply(200, bytes(LIMIT + int(argument)))

    def answer_chunked(self, argument: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(int(argument)):
            self.wfile.write(b"3e8\r\n" + bytes(1000) + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_short(self, argument: str) -> None:
        self.reply(200, b"half", Content_Length="1000")
        self.close_connection = True

    def answer_tags(self, argument: str) -> None:
        self.reply(200, b"mine", X_Robots_Tag=argument.replace("_", ", ").replace("=", ": "))

    def answer_packed(self, argument: str) -> None:
        self.reply(200, b"\x1f\x8b not unpacked", Content_Encoding="gzip")

    def answer_nonsense(self, argument: str) -> None:
        self.wfile.write(b"I do not speak HTTP\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections beyond it would wait a second


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """`http://127.0.0.1:PORT` of a running server."""
    Handler.running.clear()
    httpd = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    Handler.running.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def quick(**settings: object) -> FetchConfig:
    defaults = {"allow_private_hosts": True, "max_bytes": LIMIT, "backoff_s": 0.01, "retries": 2}
    return FetchConfig.model_validate(defaults | settings)


def fetched(url: str, **settings: object) -> bytes | Reason:
    (outcome,) = fetch_in_order([url], quick(**settings))
    return outcome.reason if isinstance(outcome, RejectedInput) else outcome


def test_bodies_arrive_whole_and_unpacked_by_nobody(server):
    assert fetched(f"{server}/ok/1") == b"body 1"
    assert fetched(f" {server}/ok/1\n") == b"body 1"
    assert fetched(f"{server}/packed/") == b"\x1f\x8b not unpacked"
    assert fetched(f"{server}/chunked/10") == bytes(LIMIT)
    assert fetched(f"{server}/big/0") == bytes(LIMIT)


def test_requests_say_who_asks_and_ask_for_plain_images(server):
    Handler.headers_seen.clear()
    fetched(f"{server}/ok/1", user_agent="me (https://example.org)")
    (headers,) = Handler.headers_seen
    assert headers["user-agent"] == "me (https://example.org)"
    assert headers["accept-encoding"] == "identity"
    assert headers["accept"] == "image/*"


@pytest.mark.parametrize(
    ("path", "reason", "attempts"),
    [
        ("status/404", Reason.HTTP_404, 1),
        ("status/403", Reason.HTTP_4XX, 1),
        ("status/410", Reason.HTTP_4XX, 1),
        ("status/429", Reason.HTTP_4XX, 3),
        ("status/500", Reason.HTTP_5XX, 3),
        ("status/501", Reason.HTTP_5XX, 1),
        ("short/", Reason.TRUNCATED, 3),
        ("big/1", Reason.TOO_LARGE, 1),
        ("chunked/11", Reason.TOO_LARGE, 1),
        ("nonsense/", Reason.CONNECT, 3),
    ],
)
def test_failures_have_their_reason_and_only_transient_ones_are_tried_again(server, path, reason, attempts):
    Handler.asked.clear()
    assert fetched(f"{server}/{path}") == reason
    assert Handler.asked[f"/{path}"] == attempts


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_fetched_in_the_end(server, status):
    Handler.asked.clear()
    assert fetched(f"{server}/flaky/{status}/2/a") == b"at last"
    assert fetched(f"{server}/flaky/{status}/3/b") == (Reason.HTTP_4XX if status == 429 else Reason.HTTP_5XX)
    assert fetched(f"{server}/flaky/{status}/1/c", retries=0) != b"at last"


def test_redirects(server):
    assert fetched(f"{server}/hops/0") == b"body end"
    assert fetched(f"{server}/hops/4") == b"body end"
    assert fetched(f"{server}/hops/5") == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/hops/0", max_redirects=0) == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/loop/") == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/nowhere/") == Reason.TOO_MANY_REDIRECTS


@pytest.mark.parametrize("target", ["file", "user", "bad"])
def test_redirects_are_checked_like_urls(server, target):
    assert fetched(f"{server}/to/{target}") == Reason.BAD_URL


def test_a_body_that_takes_too_long_is_given_up(server):
    start = time.monotonic()
    assert fetched(f"{server}/slow/", total_timeout_s=0.5, retries=0) == Reason.TIMEOUT
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("tags", ["noai", "NoAI", "noindex", "nofollow_noimageai", "bot=noml", "noimageindex"])
def test_opt_outs_are_honoured(server, tags):
    assert fetched(f"{server}/tags/{tags}") == Reason.OPTED_OUT_HEADER
    assert fetched(f"{server}/tags/{tags}", honour_opt_outs=False) == b"mine"


def test_other_robots_tags_do_not_matter(server):
    assert fetched(f"{server}/tags/nofollow_max-snippet=3") == b"mine"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "http://me:secret@example.org/a.jpg",
        "http://me@example.org/a.jpg",
        "http://example.org/" + "a" * 5000,
        "http:///a.jpg",
        "//example.org/a.jpg",
        "example.org/a.jpg",
        "http://[::1/a.jpg",
        "http://example.org:99999/a.jpg",
        "http://example.org:port/a.jpg",
        "http://" + "a" * 300 + ".org/",
        "http://.../",
        "",
        "\0",
    ],
)
def test_urls_that_are_not_fetched(url, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", never)
    outcome = fetched(url)
    assert outcome == Reason.BAD_URL


def test_credentials_do_not_reach_the_rejects():
    with pytest.raises(RejectedInput) as refused:
        parse_url("http://me:secret@example.org/a.jpg")
    assert "secret" not in refused.value.detail


def test_nobody_listening_is_connect():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert fetched(f"http://127.0.0.1:{free.getsockname()[1]}/") == Reason.CONNECT


def test_an_unknown_host_is_dns(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fetched("http://nowhere.example/a.jpg") == Reason.DNS
    assert fetched("http://nowhere.example/a.jpg", allow_private_hosts=False) == Reason.DNS


BLOCKED = [
    "127.0.0.1",
    "127.255.255.254",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "ff02::1",
    "2001:db8::1",
]
EMBEDDED = [
    pytest.param("::127.0.0.1", id="compatible"),  # RFC 4291, 2.5.5.1
    pytest.param("64:ff9b::a9fe:a9fe", id="nat64"),  # RFC 6052: 169.254.169.254 behind a NAT64 gateway
    pytest.param("fec0::1", id="site-local"),  # RFC 3879
]


@pytest.mark.parametrize("address", [*BLOCKED, *EMBEDDED])
def test_addresses_that_are_not_global_are_blocked(address):
    with pytest.raises(BlockedAddressError):
        check_address(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::", "::ffff:93.184.216.34"])
def test_global_addresses_are_allowed(address):
    check_address(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"])
def test_loopback_is_blocked(server, host):
    """The server would answer: a request must never reach it."""
    Handler.asked.clear()
    url = server.replace("127.0.0.1", host)
    assert fetched(f"{url}/ok/1", allow_private_hosts=False) == Reason.BLOCKED_ADDRESS
    assert not Handler.asked


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0", "127.0.0.1."])
def test_odd_spellings_of_loopback_are_refused(server, host):
    """The C library takes these for addresses; whoever refuses them first, no request may go out."""
    Handler.asked.clear()
    outcome = fetched(f"{server.replace('127.0.0.1', host)}/ok/1", allow_private_hosts=False)
    assert outcome in (Reason.BLOCKED_ADDRESS, Reason.BAD_URL)
    assert not Handler.asked


def test_many_urls_of_one_blocked_host_have_one_verdict(server):
    """Lookups of one host are shared, and so must the refusal be."""
    urls = [f"{server.replace('127.0.0.1', 'localhost')}/ok/{n}" for n in range(20)]
    outcomes = list(fetch_in_order(urls, quick(allow_private_hosts=False)))
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, RejectedInput)] == [
        Reason.BLOCKED_ADDRESS
    ] * 20


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """Name lookups give these answers, one list after the other, the last for good."""
    calls = count()

    def lookup(host: str, port: int, *_: object, **__: object) -> list[tuple]:
        addresses = answers[min(next(calls), len(answers) - 1)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0))) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_one_private_address_among_the_answers_is_enough(server, monkeypatch):
    resolving(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    url = server.replace("127.0.0.1", "pictures.example")
    assert fetched(f"{url}/ok/1", allow_private_hosts=False) == Reason.BLOCKED_ADDRESS


def test_redirects_to_private_addresses_are_blocked(server, monkeypatch):
    """The first hop is let through as a public server's would be; the metadata service behind it is not."""
    strict, server_address = fetch.check_address, "127.0.0.1"
    monkeypatch.setattr(fetch, "check_address", lambda address: None if address == server_address else strict(address))
    assert fetched(f"{server}/hops/1", allow_private_hosts=False) == b"body end"
    for number in range(len(METADATA_HOSTS)):
        assert fetched(f"{server}/metadata/{number}", allow_private_hosts=False) == Reason.BLOCKED_ADDRESS


def fetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fetch"]


def test_results_come_in_order_whatever_the_latencies(server):
    delays = [0.3, 0.0, 0.2, 0.1, 0.0, 0.25, 0.05, 0.0]
    urls = [f"{server}/late/{delay}" for delay in delays]
    for concurrency in (1, 3, 32):
        start = time.monotonic()
        outcomes = list(fetch_in_order(urls, quick(concurrency=concurrency)))
        assert outcomes == [str(delay).encode() for delay in delays]
        if concurrency == 32:
            assert time.monotonic() - start < 0.75  # one after the other they take 0.9 s
    assert fetch_threads() == []


def test_no_more_than_the_window_is_asked_ahead(server):
    taken: list[int] = []

    def urls() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield f"{server}/ok/{number}"

    outcomes = fetch_in_order(urls(), quick(concurrency=4))
    assert next(outcomes) == b"body 0"
    assert len(taken) <= 5
    outcomes.close()
    assert fetch_threads() == []


def test_closing_early_leaves_nothing_behind(server):
    outcomes = fetch_in_order([f"{server}/ok/1", *[f"{server}/slow/{n}" for n in range(6)]], quick(concurrency=8))
    assert next(outcomes) == b"body 1"
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 2
    assert fetch_threads() == []


def test_no_urls_no_threads():
    assert list(fetch_in_order([], quick())) == []
    assert fetch_threads() == []
