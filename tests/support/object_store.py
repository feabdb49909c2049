"""An S3 server on this machine (moto's, in a process of its own), and a proxy before it that fails as networks do."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import boto3
import pytest

from uvd.pipeline import cli

KEY_ID, SECRET = "AKIAUVDTESTS", "s3cr3t-0f-the-t3sts-7f3a9c"
BUCKET = "uvd-tests"
Fault = Literal["500", "503", "403", "404", "silent", "slow", "cut", "cut-upload", "late-500"]
"""What the proxy does with a request: answers so; never answers; trickles the answer; breaks off in the middle of the
answer, or of the upload; lets it through, and answers 500 all the same.
"""
_ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchBucket"),
}
_SERVER = """
import sys
from werkzeug.serving import make_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
server = make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=True)
server.serve_forever()
"""
_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}
_START_S = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Rule:
    """The next `times` requests of this method whose path or query holds `where` meet a fault."""

    fault: Fault
    times: int
    method: str = ""
    where: str = ""

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and self.where in path


@dataclass
class ObjectStore:
    """The server's address, the proxy's, and what goes through the proxy."""

    server: str
    proxy: str
    bucket: str = BUCKET
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path with query) of all that came."""
    met: list[tuple[Fault, str, str]] = field(default_factory=list)
    """(fault, method, path) of those that were made to fail."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, fault: Fault, times: int = 1, method: str = "", where: str = "") -> None:
        with self.lock:
            self.rules.append(Rule(fault, times, method, where))

    def heal(self) -> None:
        """From now on all goes well; forgets what went through."""
        with self.lock:
            for kept in (self.rules, self.requests, self.met):
                kept.clear()  # type: ignore[attr-defined]

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.fits(method, path):
                    rule.times -= 1
                    self.met.append((rule.fault, method, path))
                    return rule.fault
        return None

    @cached_property
    def client(self) -> Any:
        """Of boto3, straight to the server."""
        return boto3.session.Session().client("s3", endpoint_url=self.server, region_name="us-east-1")

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def objects(self, prefix: str) -> dict[str, bytes]:
        """All objects whose keys begin so, by the rest of the key."""
        client, found = self.client, {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                body = client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
                found[entry["Key"][len(prefix) :]] = body
        return found

    def data(self, path: str) -> dict[str, bytes]:
        """The objects of a dataset that must be deterministic."""
        found = self.objects(path.rstrip("/") + "/")
        return {name: body for name, body in found.items() if name.partition("/")[0] not in ("runs", "index")}

    def open_uploads(self) -> list[str]:
        """Keys of multipart uploads that were begun and not ended."""
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    host, port = store.server.removeprefix("http://").split(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120
        disable_nagle_algorithm = True

        def _any(self) -> None:
            fault = store.fault_for(self.command, self.path)
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "cut-upload":
                self.rfile.read(length // 2)
                return self._hang_up()
            body = self.rfile.read(length)
            if fault == "silent":
                self.connection.settimeout(60)
                self.connection.recv(1)  # until the client leaves
                return self._hang_up()
            if fault in _ERRORS:
                return self._answer_error(fault)
            status, headers, content = self._forward(body)
            if fault == "late-500":
                return self._answer_error("500")
            self._answer(status, headers, content, fault)

        def __getattr__(self, name: str) -> Any:
            if name in ("do_GET", "do_PUT", "do_POST", "do_DELETE", "do_HEAD"):
                return self._any
            raise AttributeError(name)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection(host, int(port), timeout=60)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                upstream.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in (*_HOP, "server", "date") and (
                    name.lower() != "content-length" or self.command == "HEAD"
                ):
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                return self._hang_up()
            if fault == "slow":
                for start in range(0, len(content), max(1, len(content) // 20)):
                    self.wfile.write(content[start : start + max(1, len(content) // 20)])
                    self.wfile.flush()
                    time.sleep(0.05)
                return
            self.wfile.write(content)

        def _answer_error(self, fault: str) -> None:
            status, code = _ERRORS[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made to fail</Message></Error>".encode()
            self._answer(status, [("Content-Type", "application/xml")], text, None)

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            """What came is in `requests`."""

    return Handler


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # clients may hang up
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Starts server and proxy, and lets this process and its children use them as a user would: by the environment."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    proxy = None
    with pytest.MonkeyPatch.context() as patch:
        try:
            store = ObjectStore(f"http://127.0.0.1:{port}", "")
            proxy = _Proxy(("127.0.0.1", 0), _handler(store))
            store.proxy = f"http://127.0.0.1:{proxy.server_address[1]}"
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            for name, value in environment(store).items():
                patch.setenv(name, value)
            _wait_until_up(store, server)
            yield store
        finally:
            if proxy is not None:
                proxy.shutdown()
                proxy.server_close()
            server.kill()
            server.wait()


def environment(store: ObjectStore) -> dict[str, str]:
    """What a user sets."""
    nowhere = str(Path(os.devnull))
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": store.proxy,
        "AWS_REGION": "us-east-1",
        # Nothing of this machine's own settings.
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "NO_PROXY": "127.0.0.1",
    }


def _wait_until_up(store: ObjectStore, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    host, port = store.server.removeprefix("http://").split(":")
    while True:
        assert server.poll() is None, "moto's server ended"
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < end, "moto's server does not listen"
            time.sleep(0.05)
    store.client.create_bucket(Bucket=store.bucket)


def run_uvd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs the command in this process: (exit code, all that it printed)."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["uvd", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err
