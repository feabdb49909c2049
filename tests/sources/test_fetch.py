"""Fetching against a real HTTP server on loopback that answers in every bad way, and the checks of addresses."""

from __future__ import annotations

import errno
import gzip
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import unquote

import pytest

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import client, resolver
from uvd.sources.client import host_memory
from uvd.sources.fetch import FetchConfig, FetchStats, fetch_in_order

LIMIT = 10_000
METADATA_HOSTS = ("169.254.169.254", "10.0.0.1", "[fd00:ec2::254]")


class Handler(BaseHTTPRequestHandler):
    """Answers by path; counts what was asked."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str] = Counter()
    headers_seen: list[dict[str, str]] = []
    running = threading.Event()
    robots: tuple[int, bytes, dict[str, str]] = (404, b"", {})

    def do_GET(self) -> None:
        Handler.asked[self.path] += 1
        Handler.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path == "/robots.txt":
            status, body, headers = Handler.robots
            return self.reply(status, body, **headers)
        action, _, argument = self.path[1:].partition("/")
        return getattr(self, f"answer_{action}")(argument)

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
        self.reply(200, gzip.compress(bytes(10 << 20), mtime=0), Content_Encoding=argument)

    def answer_long(self, argument: str) -> None:
        """More than announced; what is too much would be taken for the next answer."""
        self.reply(200, b"body and HTTP/1.1 200 OK", Content_Length="4")
        self.close_connection = True

    def answer_wait(self, argument: str) -> None:
        """`wait/429/120`: that status with this `Retry-After`."""
        status, _, after = argument.partition("/")
        self.reply(int(status), b"", Retry_After=unquote(after))

    def answer_silent(self, argument: str) -> None:
        Handler.running.wait(5)

    def answer_nonsense(self, argument: str) -> None:
        self.wfile.write(b"I do not speak HTTP\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections beyond it would wait a second


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Each test meets its hosts for the first time."""
    host_memory.cache_clear()
    Handler.robots = (404, b"", {})
    Handler.asked.clear()
    yield
    host_memory.cache_clear()


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


def test_bodies_arrive_whole(server):
    assert fetched(f"{server}/ok/1") == b"body 1"
    assert fetched(f" {server}/ok/1\n") == b"body 1"
    assert fetched(f"{server}/chunked/10") == bytes(LIMIT)
    assert fetched(f"{server}/big/0") == bytes(LIMIT)


def test_compressed_bodies_are_refused_unread(server):
    for coding in ("gzip", "GZip", "br", "identity, deflate"):
        assert fetched(f"{server}/packed/{coding.replace(' ', '')}", max_bytes=1 << 20) == Reason.NOT_IMAGE
    assert fetched(f"{server}/packed/binary", max_bytes=1 << 20) == gzip.compress(bytes(10 << 20), mtime=0)


def test_what_follows_a_body_is_not_the_next_answer(server):
    urls = [f"{server}/long/", f"{server}/ok/1", f"{server}/long/", f"{server}/ok/2"]
    outcomes = list(fetch_in_order(urls, quick(concurrency=1, retries=0)))
    assert outcomes[1::2] == [b"body 1", b"body 2"]
    assert all(outcome == b"body" or isinstance(outcome, RejectedInput) for outcome in outcomes[::2])


def test_requests_say_who_asks_and_ask_for_plain_images(server):
    Handler.headers_seen.clear()
    fetched(f"{server}/ok/1", user_agent="me/1", contact_url="https://example.org/bot")
    robots, headers = Handler.headers_seen
    assert robots["user-agent"] == headers["user-agent"] == "me/1 (+https://example.org/bot)"
    assert not headers.keys() & {"cookie", "referer", "authorization"}
    assert headers["accept-encoding"] == "identity"
    assert headers["accept"] == "image/*"


@pytest.mark.parametrize(
    ("path", "reason", "attempts"),
    [
        ("status/404", Reason.HTTP_404, 1),
        ("status/403", Reason.HTTP_4XX, 1),
        ("status/410", Reason.HTTP_4XX, 1),
        ("status/429", Reason.HTTP_429, 3),
        ("status/500", Reason.HTTP_5XX, 3),
        ("status/501", Reason.HTTP_5XX, 1),
        ("status/520", Reason.HTTP_5XX, 3),
        ("status/408", Reason.TIMEOUT, 3),
        ("status/204", Reason.HTTP_OTHER, 1),
        ("status/300", Reason.HTTP_OTHER, 1),
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
    assert fetched(f"{server}/flaky/{status}/3/b") == (Reason.HTTP_429 if status == 429 else Reason.HTTP_5XX)
    assert fetched(f"{server}/flaky/{status}/1/c", retries=0) != b"at last"


def test_redirects(server):
    assert fetched(f"{server}/hops/0") == b"body end"
    assert fetched(f"{server}/hops/4") == b"body end"
    assert fetched(f"{server}/hops/5") == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/hops/0", max_redirects=0) == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/loop/") == Reason.TOO_MANY_REDIRECTS
    assert fetched(f"{server}/nowhere/") == Reason.BAD_URL


@pytest.mark.parametrize("target", ["file", "user", "bad"])
def test_redirects_are_checked_like_urls(server, target):
    assert fetched(f"{server}/to/{target}") == Reason.BAD_URL


def test_a_body_that_takes_too_long_is_given_up(server):
    start = time.monotonic()
    assert fetched(f"{server}/slow/", total_timeout_s=0.5, retries=0) == Reason.TIMEOUT
    assert time.monotonic() - start < 3


def test_opt_outs_in_headers_are_honoured(server):
    assert fetched(f"{server}/tags/NoAI") == Reason.OPTED_OUT_HEADER
    assert fetched(f"{server}/tags/NoAI", honour_opt_outs=False) == b"mine"
    assert fetched(f"{server}/tags/uvd=noml") == Reason.OPTED_OUT_HEADER
    assert fetched(f"{server}/tags/otherbot=noml") == b"mine"
    assert fetched(f"{server}/tags/otherbot=noml", user_agent="OtherBot/2") == Reason.OPTED_OUT_HEADER
    assert fetched(f"{server}/tags/nofollow_max-snippet=3") == b"mine"


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
    strict, server_address = client.check_address, "127.0.0.1"
    monkeypatch.setattr(client, "check_address", lambda address: None if address == server_address else strict(address))
    assert fetched(f"{server}/hops/1", allow_private_hosts=False) == b"body end"
    for number in range(len(METADATA_HOSTS)):
        assert fetched(f"{server}/metadata/{number}", allow_private_hosts=False) == Reason.BLOCKED_ADDRESS
    Handler.robots = (302, b"", {"Location": "http://169.254.169.254/robots.txt"})
    assert fetched(f"{server}/ok/1", allow_private_hosts=False, backoff_s=0.02) == Reason.BLOCKED_ADDRESS


def test_a_host_is_looked_up_once_and_then_dialled_where_it_was_checked(server, monkeypatch):
    """The second answer of a name server that means harm comes too late: nobody asks again."""
    resolving(monkeypatch, ["127.0.0.1"], ["203.0.113.1"])
    url = server.replace("127.0.0.1", "pictures.example")
    stats = FetchStats()
    urls = [f"{url}/ok/{number}" for number in range(30)]
    assert list(fetch_in_order(urls, quick(), stats)) == [b"body %d" % number for number in range(30)]
    assert stats.dns_lookups == 1
    assert Handler.headers_seen[-1]["host"] == url.removeprefix("http://")
    fetched(f"{url}/ok/1")
    assert Handler.asked["/robots.txt"] == 1


def failing_lookups(monkeypatch: pytest.MonkeyPatch, code: int, times: int = 1000) -> Counter[str]:
    """Name lookups fail that many times with an error of getaddrinfo, and then say 127.0.0.1."""
    asked: Counter[str] = Counter()

    def lookup(host: str, *_: object, **__: object) -> list[tuple]:
        asked[host] += 1
        if asked[host] <= times:
            raise socket.gaierror(code, "as the test wants")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_a_host_that_does_not_exist_is_asked_for_once(monkeypatch):
    asked = failing_lookups(monkeypatch, socket.EAI_NONAME)
    urls = [f"http://nowhere.example/{number}" for number in range(20)]
    outcomes = list(fetch_in_order(urls, quick(honour_robots_txt=False)))
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, RejectedInput)} == {Reason.DNS}
    assert asked == {"nowhere.example": 1}


def test_a_name_server_in_trouble_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(resolver, "_TEMPORARY_TTL_S", 0)
    asked = failing_lookups(monkeypatch, socket.EAI_AGAIN, times=2)
    url = server.replace("127.0.0.1", "pictures.example")
    assert fetched(f"{url}/ok/1") == b"body 1"
    assert asked["pictures.example"] == 3
    failing_lookups(monkeypatch, socket.EAI_AGAIN)
    assert fetched("http://elsewhere.example/") == Reason.DNS_TEMPORARY


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(10))
    assert fetched("http://slow.example/", dns_timeout_s=0.05, retries=0) == Reason.DNS_TEMPORARY
    over.set()


def test_trouble_of_this_machine_is_no_verdict_on_an_image(monkeypatch):
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        fetched("http://somewhere.example/")
    assert fetch_threads() == []


def test_a_body_that_trickles_is_given_up_before_its_time(server):
    """Bytes come all the time, so neither silence nor the total would end it soon."""
    start = time.monotonic()
    assert fetched(f"{server}/slow/", read_timeout_s=0.3, total_timeout_s=60, retries=0) == Reason.TIMEOUT
    assert time.monotonic() - start < 20


def test_a_silent_server_is_given_up(server):
    assert fetched(f"{server}/silent/", read_timeout_s=0.2, retries=0) == Reason.TIMEOUT


def test_robots_txt_is_kept_to_and_asked_for_once(server):
    Handler.robots = (200, b"User-agent: *\nDisallow: /ok/1*\nAllow: /ok/12$\n", {})
    urls = [f"{server}/ok/{number}" for number in (1, 2, 10, 12, 13)]
    outcomes = list(fetch_in_order(urls, quick()))
    assert outcomes[1::2] == [b"body 2", b"body 12"]
    refused = [outcome for outcome in outcomes[::2] if isinstance(outcome, RejectedInput)]
    assert [(each.reason, each.detail) for each in refused] == [(Reason.OPTED_OUT_ROBOTS, "Disallow: /ok/1*")] * 3
    assert Handler.asked == {"/robots.txt": 1, "/ok/2": 1, "/ok/12": 1}
    assert fetched(urls[0], honour_robots_txt=False) == b"body 1"


def test_robots_txt_holds_for_redirects_too(server):
    Handler.robots = (200, b"User-agent: uvd\nDisallow: /ok/end\n", {})
    assert fetched(f"{server}/hops/1") == Reason.OPTED_OUT_ROBOTS
    assert Handler.asked["/ok/end"] == 0


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_no_robots_txt_means_no_rules(server, status):
    Handler.robots = (status, b"User-agent: *\nDisallow: /" if status != 204 else b"", {})
    assert fetched(f"{server}/ok/1") == b"body 1"


@pytest.mark.parametrize(("status", "reason"), [(500, Reason.HTTP_5XX), (503, Reason.HTTP_5XX), (429, Reason.HTTP_429)])
def test_robots_txt_that_cannot_be_had(server, status, reason):
    Handler.robots = (status, b"", {})
    (outcome,) = fetch_in_order([f"{server}/ok/1"], quick())
    assert isinstance(outcome, RejectedInput)
    assert (outcome.reason, outcome.detail) == (reason, f"robots.txt: {status}")
    assert outcome.reason.transient
    assert Handler.asked == {"/robots.txt": 3}
    assert fetched(f"{server}/ok/1", robots_unreachable="allow") == b"body 1"


def test_odd_robots_txt(server):
    rules = b"User-agent: *\nDisallow: /ok/\n"
    for robots in [
        (200, gzip.compress(rules), {"Content_Encoding": "gzip"}),
        (200, b"\xef\xbb\xbf" + rules.replace(b"\n", b"\r") + b"\xff" * 600_000, {}),
    ]:
        host_memory.cache_clear()
        Handler.robots = robots
        assert fetched(f"{server}/ok/1") == Reason.OPTED_OUT_ROBOTS
    for robots in [
        (302, b"", {"Location": "/loop/"}),
        (302, b"", {"Location": "file:///etc/passwd"}),
        (200, b"#" * 600_000 + b"\n" + rules, {}),
        (200, b"<html><body>Disallow: /</body></html>", {}),
    ]:
        host_memory.cache_clear()
        Handler.robots = robots
        assert fetched(f"{server}/ok/1") == b"body 1", robots


def test_a_pause_that_a_host_asks_for_is_kept(server):
    begun = time.time()
    assert fetched(f"{server}/wait/429/1", backoff_s=0, retries=1) == Reason.HTTP_429
    assert time.time() - begun >= 1
    assert Handler.asked["/wait/429/1"] == 2


@pytest.mark.parametrize("after", ["120", "Fri,%2031%20Dec%202100%2023:59:59%20GMT"])
def test_a_host_that_asks_for_a_long_pause_is_left_alone(server, after):
    urls = [f"{server}/wait/503/{after}", *[f"{server}/ok/{number}" for number in range(5)]]
    outcomes = list(fetch_in_order(urls, quick(concurrency=1)))
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, RejectedInput)} == {Reason.HTTP_5XX}
    assert sum(Handler.asked.values()) == 2


@pytest.mark.parametrize("after", ["soon", "-5", "0", "Fri, 31 Dec 1999 23:59:59 GMT", "9" * 400, "Fri, 99 Dec 9999"])
def test_retry_after_in_any_form_ends(server, after):
    outcome = fetched(f"{server}/wait/429/{after.replace(' ', '%20')}", retries=1)
    assert outcome == Reason.HTTP_429


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

    outcomes = fetch_in_order(urls(), quick(concurrency=4, lookahead=20))
    assert next(outcomes) == b"body 0"
    assert len(taken) <= 20
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
