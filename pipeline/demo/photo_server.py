"""A real HTTP server for the demo's photos, on loopback, and the Parquet file of their URLs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uvd.pipeline.demo.packages import SamplesError

EXTRA_URLS = ("{base}/no-such-photo.jpg", "ftp://127.0.0.1/photo.jpg", "file:///etc/hostname")
"""URLs that must be refused: a 404, a wrong scheme, a local file."""


USUAL_PORT = 8731


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _listen(chosen: int | None, handler: Callable[..., _QuietHandler]) -> ThreadingHTTPServer:
    """On the port chosen earlier, else on the usual one, else on any that is free."""
    for port in (chosen,) if chosen else (USUAL_PORT, 0):
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            taken = error
    raise SamplesError(f"port {chosen}, on which the demo serves its photos, cannot be used now: {taken}")


@contextmanager
def serve(folder: Path, port_file: Path) -> Iterator[str]:
    """Serves `folder` while the block runs; yields its address.

    The port is chosen once and kept in `port_file`, because URLs are part of what a dataset is made from.

    Raises:
        SamplesError: if the port that was chosen earlier is taken now.
    """
    chosen = port_file.read_text() if port_file.exists() else ""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    server = _listen(int(chosen) if chosen.isdigit() else None, handler)
    port_file.write_text(str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, name="photos", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_urls(folder: Path, base: str, file: Path) -> None:
    """Writes LAION-style metadata of the photos in `folder`; the captions are there to be ignored."""
    urls = [f"{base}/{path.name}" for path in sorted(folder.iterdir())]
    urls += [url.format(base=base) for url in EXTRA_URLS]
    captions = [f"caption {number}, never read" for number in range(len(urls))]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), temporary)
    temporary.rename(file)
