"""A real HTTP server for the demo's photos, on loopback, and the Parquet file of their URLs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXTRA_URLS = ("{base}/no-such-photo.jpg", "ftp://127.0.0.1/photo.jpg", "file:///etc/hostname")
"""URLs that must be refused: a 404, a wrong scheme, a local file."""


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path, port_file: Path) -> Iterator[str]:
    """Serves `folder` while the block runs; yields its address.

    The port is chosen once and kept in `port_file`, because URLs are part of what a dataset is made from.
    """
    port = int(port_file.read_text()) if port_file.exists() else 0
    handler = functools.partial(_QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
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
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), file)
