"""A real Ray cluster of one node, started by `ray start` with token authentication, and ended whatever happens."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT_S = 120
END_TIMEOUT_S = 30


@dataclass(frozen=True)
class RayCluster:
    """A cluster that runs.

    Attributes:
        address: of the dashboard, on loopback.
        gcs_address: where further nodes and drivers find the head, `host:port`.
        token: what the cluster asks for.
        token_path: a file that holds it.
        folder: its temporary folder, with sessions and logs.
        process: `ray start --head --block`.
    """

    address: str
    gcs_address: str
    token: str
    token_path: Path
    folder: Path
    process: subprocess.Popen

    def environment(self) -> dict[str, str]:
        """The environment of a user of this cluster: without what other Rays have left in ours."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**clean, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}


@contextmanager
def ray_cluster(num_cpus: int = 2, object_store_bytes: int = 100 << 20, *more: str) -> Iterator[RayCluster]:
    """Starts a head node and ends exactly what it started.

    Args:
        more: further arguments of `ray start`.
    """
    # Paths of Unix sockets may have 107 bytes, of which Ray's session takes 70: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="uvd-ray-"))
    try:
        token_path = folder / "token"
        token_path.write_text(secrets.token_hex(32))
        token_path.chmod(0o600)
        gcs, dashboard, *others = free_ports(7)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={folder / 'ray'}"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        command += [f"--{name}-port={port}" for name, port in zip(names, others, strict=False)]
        command += [f"--ray-client-server-port={others[-1]}", f"--num-cpus={num_cpus}"]
        command += [f"--object-store-memory={object_store_bytes}", *more]
        cluster = _start(command, folder, token_path, gcs, dashboard)
        try:
            _wait_until_ready(cluster)
            yield cluster
        finally:
            end(cluster.process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[str], folder: Path, token_path: Path, gcs: int, dashboard: int) -> RayCluster:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **clean,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Jobs run `python`, which on a cluster's image is that of uvd's dependencies.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    return RayCluster(
        f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", token_path.read_text(), token_path, folder, process
    )


def _wait_until_ready(cluster: RayCluster) -> None:
    """Until the dashboard answers and knows an agent, which jobs are sent to."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and cluster.process.poll() is None:
        request = urllib.request.Request(f"{cluster.address}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {cluster.token}")
        with suppress(urllib.error.URLError, TimeoutError, ConnectionError, ValueError, KeyError):
            with urllib.request.urlopen(request, timeout=5) as answer:
                nodes = json.load(answer)["data"]["summary"]
            if any(node.get("agent") for node in nodes):
                return
        time.sleep(0.2)
    raise RuntimeError(f"Ray did not start:\n{(cluster.folder / 'start.log').read_text()[-3000:]}")


def end(process: subprocess.Popen) -> None:
    """Kills a process that a test started, and every process below it: nothing of theirs is to be kept."""
    doomed: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        doomed = [root, *root.children(recursive=True)]
    for one in doomed:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(doomed[1:], timeout=END_TIMEOUT_S)
    process.wait(END_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
