"""A Ray cluster on this machine whose nodes can be killed one by one, as machines die.

Every node is a `ray start --block` of its own with its own raylet, object store and resources; the head has no CPU, as
on real clusters, so that work lies on nodes that may die. A node takes 2 to 4 s to start and 250 MB.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 60.0
"""A node that has not joined by then is given up."""
OBJECT_STORE_BYTES = 100 << 20
GCS_RECONNECT_S = 8
"""After so long without a head, drivers and nodes end; Ray's own 60 s would make a campaign of hours."""
_PORTS = range(20_000, 32_000)
_PR_SET_PDEATHSIG = 1
_HEALTH = {
    # Ray's own values notice a dead machine after some 15 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_RECONNECT_S),
}


class ClusterError(RuntimeError):
    """A node did not start; the message has the end of what it said."""


def free_port() -> int:
    """A port that nobody listens on, of those that the system gives to no one who asks for just any."""
    while True:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port


def end_with_parent() -> None:
    """For a child before it starts: SIGTERM when the campaign dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def kill_all(processes: list[psutil.Process], timeout_s: float = 10) -> None:
    """Kills processes at once and waits until they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout_s)


@dataclass
class Node:
    """One machine of the cluster: the process of `ray start` and all below it."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def joined(self) -> bool:
        """Whether it has become part of the cluster, at some time."""
        return b"Ray runtime started" in self.log.read_bytes()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and bool(self.raylets())

    def family(self) -> list[psutil.Process]:
        """Everything that runs on this node now, as far as its parents live."""
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def raylets(self) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def workers(self, doing: tuple[str, ...]) -> list[psutil.Process]:
        """Ray's workers on this node whose title, without `ray::`, begins with one of these."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                if "".join(process.cmdline()[:1]).removeprefix("ray::").startswith(doing):
                    found.append(process)
        return found

    def kill_raylet(self) -> None:
        """SIGKILL to the raylet alone; its workers find out by themselves."""
        kill_all(self.raylets())

    def kill(self) -> None:
        """SIGKILL to all processes, as when the power goes."""
        kill_all(self.family())
        self.process.wait(timeout=10)


class Cluster:
    """A head without CPUs and nodes with some; use as a context manager, which leaves no process behind."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._sessions: set[int] = set()
        # Short: the path of a Unix socket has 107 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="uvd-chaos-"))
        self.environment = {
            **_HEALTH,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            **(environment or {}),
        }
        """What whoever speaks to the cluster needs in its environment."""
        self.nodes: list[Node] = []
        self._started: list[Node] = []
        self._head: Node | None = None
        self.address = ""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Node:
        assert self._head is not None
        return self._head

    def start(self, nodes: int = 2) -> None:
        """Starts a head, at a new address, and nodes."""
        port = free_port()
        options = ("--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false", "--no-monitor")
        # Without a port of its own, Ray's client server would take a fixed one.
        client = ("--ray-client-server-port", str(free_port()), "--temp-dir", str(self.folder / str(port)))
        self._head = self._wait(self._launch(*options, *client))
        self.address = f"127.0.0.1:{port}"
        for _ in range(nodes):
            self.add_node()

    def add_node(self) -> Node:
        """One more machine; returns when it has joined."""
        return self._wait(self.launch_node())

    def launch_node(self, cpus: int = 1, resources: Mapping[str, float] | None = None) -> Node:
        """Begins to start a machine. Wait for it before the next: two that start at once take the same names."""
        options = ("--address", self.address, "--num-cpus", str(cpus), "--resources", json.dumps(dict(resources or {})))
        node = self._launch(*options)
        self.nodes.append(node)
        return node

    def _launch(self, *options: str) -> Node:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--include-log-monitor", "false"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        log = self.folder / f"node-{secrets.token_hex(4)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._sessions.add(process.pid)
        node = Node(process, log)
        self._started.append(node)
        return node

    def _wait(self, node: Node) -> Node:
        end = time.monotonic() + START_S
        while not node.joined:
            if node.process.poll() is not None or time.monotonic() > end:
                node.kill()
                raise ClusterError(f"a Ray node did not start: {node.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        return node

    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def restore(self, nodes: int) -> None:
        """As many nodes as at first, under the same head if that lives."""
        for node in [node for node in self.nodes if not node.alive]:
            node.kill()
            self.nodes.remove(node)
        # A number whose processes are gone may come to be another's.
        self._sessions &= self._processes().keys()
        if self._head is None or not self._head.alive:
            self.kill_everything()
            self.start(nodes)
        while len(self.nodes) < nodes:
            self.add_node()
        for node in self.nodes[nodes:]:
            node.kill()
        del self.nodes[nodes:]

    def restart(self, nodes: int) -> None:
        """A new head at a new address, and new nodes; those of the old cluster are left to find out and end."""
        self._head, self.nodes = None, []
        self.start(nodes)

    def end_orphans(self, timeout_s: float = 3 * GCS_RECONNECT_S) -> None:
        """Waits until what is left of dead nodes and of former clusters has ended, and kills what has not."""
        current = {node.process.pid for node in (self._head, *self.nodes) if node is not None and node.alive}
        orphans = [one for session, ours in self._processes().items() if session not in current for one in ours]
        _, alive = psutil.wait_procs(orphans, timeout_s)
        kill_all(alive)

    def kill_everything(self) -> None:
        """The head and all nodes at once, and workers that have lost their node."""
        kill_all([process for ours in self._processes().values() for process in ours])
        for node in self._started:
            node.process.wait(timeout=10)
        self._started.clear()
        self._head, self.nodes = None, []

    def _processes(self) -> dict[int, list[psutil.Process]]:
        """What the nodes of this cluster started, by session: orphans keep theirs, whatever they call themselves."""
        found: dict[int, list[psutil.Process]] = {}
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.Error):
                session = os.getsid(process.pid)
                if session in self._sessions:
                    found.setdefault(session, []).append(process)
        return found

    def close(self) -> None:
        self.kill_everything()
        shutil.rmtree(self.folder, ignore_errors=True)
