"""Order, memory and politeness of downloads against an asyncio server that answers when it is told to; TLS."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from uvd.sequences import Reason
from uvd.sequences.reject import RejectedInput
from uvd.sources import resolver
from uvd.sources.client import host_memory, tls_context
from uvd.sources.download_buffer import DownloadBuffer, NoRoomError
from uvd.sources.fetch import FetchConfig, FetchStats, fetch_in_order
from uvd.sources.resolver import Answer


class Server:
    """Answers `/SIZE/…` with so many bytes, `/held/…` not before `release`, `/chunked/SIZE` without announcing."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.hosts: set[str] = set()
        self.names: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.connections = 0
        self.reached = threading.Event()
        self.reach = 0
        self._loop = asyncio.new_event_loop()
        self._held = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.names.add(name)
        started = asyncio.start_server(self._serve, ["127.0.0.1", "127.0.0.2"], 0, ssl=tls, backlog=512)
        self._server = asyncio.run_coroutine_threadsafe(started, self._loop).result()
        self.places = ["{}:{}".format(*place) for place in sorted(s.getsockname() for s in self._server.sockets)]
        """Host and port at 127.0.0.1 and at 127.0.0.2."""

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._held.set)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                while header := (await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    if name.lower() == b"host":
                        self.hosts.add(value.strip().decode())
                await self._answer(line.split()[1].decode(), writer)
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.asked[path] += 1
        if path == "/robots.txt":
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        if sum(self.asked.values()) >= self.reach:
            self.reached.set()
        _, kind, size = path.split("/")[:3]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await (self._held.wait() if kind == "held" else asyncio.sleep(0.002))
        self.at_once -= 1
        body = bytes(int(size))
        if kind == "chunked":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(body), 1000):
                block = body[start : start + 1000]
                writer.write(b"%x\r\n%b\r\n" % (len(block), block))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


@pytest.fixture
def server() -> Iterator[Server]:
    host_memory.cache_clear()
    running = Server()
    yield running
    running.close()
    host_memory.cache_clear()


def quick(**settings: object) -> FetchConfig:
    return FetchConfig.model_validate({"allow_private_hosts": True, "backoff_s": 0.01} | settings)


def test_one_slow_host_does_not_stop_the_others(server):
    """The first URL hangs; all others are downloaded meanwhile, far more than may be in flight."""
    slow, quick_host = (f"http://{place}" for place in server.places)
    urls = [f"{slow}/held/1", *[f"{quick_host}/body/{n}" for n in range(200)], f"{slow}/held/2"]
    server.reach = 201
    outcomes = fetch_in_order(urls, quick(concurrency=8, per_host=4, lookahead=500))
    first: list[object] = []
    reader = threading.Thread(target=lambda: first.append(next(outcomes)))
    reader.start()
    assert server.reached.wait(20)
    assert not first
    server.release()
    reader.join()
    assert [len(body) for body in (*first, *outcomes)] == [1, *range(200), 2]


def test_no_more_connections_to_a_host_than_allowed_and_all_of_them_used_again(server):
    url = f"http://{server.places[0]}/body/10"
    outcomes = list(fetch_in_order([f"{url}/{n}" for n in range(100)], quick(concurrency=64, per_host=3)))
    assert outcomes == [bytes(10)] * 100
    assert server.most_at_once == 3
    assert server.connections <= 4


def test_no_more_requests_in_all_than_allowed(server):
    sites = [f"http://{place}/body/10" for place in server.places]
    list(fetch_in_order([f"{sites[n % 2]}/{n}" for n in range(100)], quick(concurrency=5, per_host=4)))
    assert server.most_at_once == 5


@pytest.mark.parametrize("kind", ["body", "chunked"])
def test_memory_is_bounded_whatever_the_images(server, kind, monkeypatch):
    """Bodies of 10,000 bytes, 25,000 allowed at once: downloads that do not fit are begun again, none is lost."""
    most = []
    hold = DownloadBuffer.hold

    def watched(self: DownloadBuffer, number: int, size: int) -> None:
        hold(self, number, size)
        most.append(self.used)

    monkeypatch.setattr(DownloadBuffer, "hold", watched)
    site = f"http://{server.places[0]}"
    urls = [f"{site}/{kind}/{10_000 + n}" for n in range(40)]
    stats = FetchStats()
    settings = quick(max_buffered_bytes=25_000, max_bytes=11_000, concurrency=16, per_host=16)
    bodies = fetch_in_order(urls, settings, stats)
    lengths = [len(next(bodies))]
    time.sleep(0.5)  # a reader that is slow for once, so that more arrives than fits
    lengths += [len(body) for body in bodies]
    assert lengths == [10_000 + n for n in range(40)]
    assert max(most) <= 25_000 + 11_000
    assert stats.body_bytes == sum(10_000 + n for n in range(40))
    assert stats.abandoned > 0
    assert stats.retries == 0


def test_a_reader_that_is_slow_is_not_run_ahead_of(server):
    """With no dead host in the way, no more is downloaded than the reader may soon take."""
    site = f"http://{server.places[0]}"
    server.reach = 100
    outcomes = fetch_in_order([f"{site}/body/{n}" for n in range(300)], quick(concurrency=10, per_host=10))
    next(outcomes)
    assert not server.reached.wait(0.5)
    assert sum(server.asked.values()) <= 1 + 16 + 2 * 10
    assert sum(1 for _ in outcomes) == 299


def test_the_buffer_counts():
    async def check() -> None:
        buffer = DownloadBuffer(100, 2)
        buffer.hold(1, 60)
        with pytest.raises(NoRoomError):
            buffer.hold(2, 41)
        buffer.hold(0, 500)  # the reader waits for it
        assert buffer.used == 560
        assert not buffer.may_start(3)
        assert buffer.may_start(0)
        assert buffer.may_start(-1)
        rooms = [asyncio.create_task(buffer.room(number, 30)) for number in (5, 3, 4)]
        await asyncio.sleep(0)
        assert not any(room.done() for room in rooms)
        buffer.delivered = 1
        buffer.taken(1)
        buffer.wake()
        await asyncio.sleep(0)
        assert [buffer.holds(number) for number in (1, 3, 4, 5)] == [60, 30, 0, 0]
        buffer.drop(1)
        buffer.wake()
        await asyncio.gather(*rooms)
        assert buffer.used == 90
        buffer.delivered = 3
        assert not buffer.may_start(9)

    asyncio.run(check())


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate for a host name, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    place = folder / "certificate.pem"
    place.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place, private)
    return place, context


def test_tls_is_verified_for_the_name_at_the_checked_address(tmp_path, monkeypatch):
    place, context = certificate(tmp_path, "pictures.example")
    server = Server(context)
    lookup = Answer(((resolver.socket.AF_INET, "127.0.0.1"),))
    monkeypatch.setattr(resolver, "_getaddrinfo", lambda host: lookup)
    port = server.places[0].partition(":")[2]

    def outcome(host: str, trusted: bool) -> bytes | RejectedInput:
        host_memory.cache_clear()
        tls_context.cache_clear()
        with monkeypatch.context() as patch:
            if trusted:
                patch.setenv("SSL_CERT_FILE", str(place))
            (result,) = fetch_in_order([f"https://{host}:{port}/body/5"], quick(retries=1))
        return result

    try:
        assert outcome("pictures.example", trusted=True) == bytes(5)
        assert server.names == {"pictures.example"}
        assert server.hosts == {f"pictures.example:{port}"}
        for host, trusted in (("pictures.example", False), ("others.example", True), ("127.0.0.1", True)):
            refused = outcome(host, trusted)
            assert isinstance(refused, RejectedInput)
            assert refused.reason == Reason.TLS, refused
        assert sum(server.asked.values()) == 2
    finally:
        server.close()
        host_memory.cache_clear()
        tls_context.cache_clear()
