"""Serving the pages to this machine alone, until Ctrl-C."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from uvd.pipeline.browse.app import Browser
from uvd.sequences.stopping import stop_on_signals
from uvd.trainer.play_server import ServeError, free_port, is_loopback

_ASKED_S = 0.2
_GRACE_S = 20
_CONNECTIONS = 64


def serve(
    browser: Browser, host: str, port: int, *, on_ready: Callable[[str], None], open_browser: bool = False
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        host: an address or name of this machine. A loopback one answers no other machine, and to its own names only.
        port: 0 takes any free one.
        on_ready: called with the address once pages are served.

    Raises:
        ServeError: if the address is not this machine's or the port is taken.
    """
    port = free_port(host, port)
    names = ["127.0.0.1", "localhost", "::1", "[::1]", host] if is_loopback(host) else ["*"]
    config = uvicorn.Config(
        browser.app(names),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = uvicorn.Server(config)
    ended = threading.Event()
    # In another thread uvicorn leaves the signals alone.
    thread = threading.Thread(target=server.run, name="uvd-browse")
    with stop_on_signals(ended.set):
        thread.start()
        try:
            while not server.started and thread.is_alive():
                ended.wait(0.02)
            if not server.started:
                raise ServeError(f"cannot listen at {host}:{port}; name another port by --port, 0 for any free one")
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
            on_ready(address)
            threading.Thread(target=browser.catalog.prepare, name="uvd-browse-listing", daemon=True).start()
            if open_browser:
                webbrowser.open(address)
            # Python runs signal handlers between waits, so a wait without end would delay them on some systems.
            while thread.is_alive() and not ended.wait(_ASKED_S):
                pass
        finally:
            browser.catalog.stop()
            server.should_exit = True
            thread.join()
