"""Serving the page of `uvd play` to this machine alone, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvd.sequences.errors import UserError
from uvd.sequences.stopping import stop_on_signals

if TYPE_CHECKING:
    from uvd.trainer.play_page import Page


class ServeError(UserError):
    """The page cannot be served at this address."""


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder of its own for uploads and results, the only one whose files the page gives out; deleted at the end.

    Gradio takes it from the environment when it is imported, so this comes before.
    """
    folder = Path(tempfile.mkdtemp(prefix="uvd-play-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def serve(
    page: Page,
    host: str,
    port: int,
    *,
    max_bytes: int,
    on_ready: Callable[[str], None],
    open_browser: bool = False,
) -> None:
    """Serves until SIGINT or SIGTERM; a prediction that runs then is stopped.

    Args:
        host: an address or name of this machine. A loopback one answers no other machine, and no page of another site
            whose name was made to lead here (DNS rebinding): only its own names are taken as `Host`.
        port: 0 takes any free one.
        max_bytes: of one uploaded file.
        on_ready: called with the address once pages are served.

    Raises:
        ServeError: if the address is not this machine's or the port is taken.
    """
    ended = threading.Event()
    port = free_port(host, port)
    with stop_on_signals(ended.set):
        _, address, _ = page.blocks.queue(max_size=20).launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=max_bytes,
            app_kwargs=app_settings(host),
            **SWITCHED_OFF,
        )
        try:
            on_ready(address)
            # Python runs signal handlers between waits, so a wait without end would delay them on some systems.
            while not ended.wait(0.5):
                pass
        finally:
            page.runs.stop()
            page.blocks.close(verbose=False)


def app_settings(host: str) -> dict[str, Any]:
    """Of FastAPI: no pages of documentation, which load scripts from elsewhere; on loopback, its own names only."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = ["127.0.0.1", "localhost", host] if is_loopback(host) else ["*"]
    return {
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
        "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)],
    }


SWITCHED_OFF: dict[str, Any] = {
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "enable_monitoring": False,
    "run_history": False,
    "show_error": False,
    "footer_links": [],
}
"""What a local page does not need."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0.

    Raises:
        ServeError: if the address is not this machine's or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise ServeError(
            f"cannot listen at {host}:{port} ({error}); name another port by --port, 0 for any free one, or --host"
        ) from error
