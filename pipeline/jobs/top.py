"""`uvd jobs top`: what runs on a cluster, how far it is, what its machines do, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uvd.pipeline.jobs.cluster import Cluster, Job
from uvd.pipeline.jobs.errors import ClusterUnreachableError
from uvd.pipeline.jobs.listing import jobs_table

EVERY_S = 2.0
_LINES = 20
_ENDED_SHOWN = 3
_GIB = 1 << 30


@dataclass(frozen=True)
class NodeUse:
    """One machine; bytes, and per cent of what it has.

    Attributes:
        logical: resources that tasks hold, by name: (in use, there are), as Ray counts them.
        gpus: of each GPU (per cent busy, bytes in use, bytes there are).
    """

    host: str
    state: str
    cpu_percent: float
    memory: tuple[float, float]
    object_store: tuple[float, float]
    logical: dict[str, tuple[float, float]]
    gpus: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Snapshot:
    """A cluster at one moment.

    Attributes:
        progress: the last line of progress of each live job, by id.
        waiting: resources that tasks wait for and nobody has free: (what, how often).
    """

    jobs: tuple[Job, ...]
    progress: dict[str, str]
    nodes: tuple[NodeUse, ...]
    waiting: tuple[tuple[dict[str, float], int], ...]


def take_snapshot(cluster: Cluster) -> Snapshot:
    """Asks the dashboard four things, and for the end of the log of each live job."""
    jobs = cluster.jobs()
    live = [job for job in jobs if job.live]
    ended = [job for job in jobs if job.over][:_ENDED_SHOWN]
    progress = {job.id: progress_line(cluster.last_lines(job, _LINES)) for job in live}
    load = _load(cluster.get("/api/cluster_status"))
    by_node = load.get("usageByNode") or {}
    nodes = tuple(_node(node, by_node) for node in cluster.nodes())
    demand = tuple((dict(shape), int(count)) for shape, count in load.get("resourceDemand") or [])
    return Snapshot((*live, *ended), progress, nodes, demand)


def progress_line(lines: list[str]) -> str:
    """The newest line about shards or steps, or else the newest line.

    >>> progress_line(["ingest laion: 3/9 shards, 2,000 sequences, 100.0/s", "shard 000004: attempt 2 after: …"])
    'ingest laion: 3/9 shards, 2,000 sequences, 100.0/s'
    """
    told = [line.strip() for line in lines if line.strip()]
    about = [line for line in told if " shards" in line or line.startswith("step ")]
    return (about or told or [""])[-1]


def _load(status: Mapping[str, Any]) -> dict[str, Any]:
    """What the autoscaler's monitor last reported; empty where a cluster runs none."""
    report = ((status.get("data") or {}).get("clusterStatus") or {}).get("loadMetricsReport")
    return report if isinstance(report, dict) else {}


def _node(node: Mapping[str, Any], by_node: Mapping[str, Any]) -> NodeUse:
    raylet = node.get("raylet") or {}
    total = raylet.get("resourcesTotal") or {}
    used = by_node.get(str(raylet.get("nodeId")), {})
    memory = node.get("mem") or [0, 0]
    store = used.get("objectStoreMemory") or [0.0, total.get("objectStoreMemory", 0.0)]
    names = [name for name in total if not name.startswith("node:") and name not in ("memory", "objectStoreMemory")]
    return NodeUse(
        host=str(node.get("hostname") or raylet.get("nodeName", "?")),
        state=str(raylet.get("state", "?")).lower(),
        cpu_percent=float(node.get("cpu") or 0),
        memory=(memory[0] - memory[1], memory[0]),
        object_store=(store[0], store[1]),
        logical={name: _pair(used.get(name, (0.0, total[name]))) for name in sorted(names)},
        gpus=tuple(_gpu(gpu) for gpu in node.get("gpus") or []),
    )


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[1]


def _gpu(gpu: Mapping[str, Any]) -> tuple[float, float, float]:
    mebibyte = 1 << 20
    used, total = gpu.get("memoryUsed") or 0, gpu.get("memoryTotal") or 0
    return float(gpu.get("utilizationGpu") or 0), used * mebibyte, total * mebibyte


def render(snapshot: Snapshot) -> RenderableType:
    """Jobs with their progress above, machines below, and what is waited for."""
    parts: list[RenderableType] = [jobs_table(snapshot.jobs)]
    for job_id, line in snapshot.progress.items():
        parts.append(Text(f"{job_id}: {line}", style="cyan"))
    nodes = Table("node", "state", "CPU", "memory", "object store", "GPU", "held by tasks", box=None, pad_edge=False)
    nodes.header_style = "bold"
    for node in sorted(snapshot.nodes, key=lambda node: (node.state != "alive", node.host)):
        held = ", ".join(f"{used:g}/{total:g} {name}" for name, (used, total) in node.logical.items())
        gpus = ", ".join(f"{busy:.0f} % {used / _GIB:.0f}/{total / _GIB:.0f} GiB" for busy, used, total in node.gpus)
        nodes.add_row(
            Text(node.host),
            node.state,
            f"{node.cpu_percent:.0f} %",
            _of(node.memory),
            _of(node.object_store),
            gpus,
            held,
        )
    parts += [Text(""), nodes]
    for shape, count in snapshot.waiting:
        wanted = " + ".join(f"{amount:g} {name}" for name, amount in shape.items())
        parts.append(Text(f"waiting for {wanted}: {count} tasks or actors", style="yellow"))
    return Group(*parts)


def _of(pair: tuple[float, float]) -> str:
    return f"{pair[0] / _GIB:.1f}/{pair[1] / _GIB:.1f} GiB"


def watch(cluster: Cluster, every_s: float = EVERY_S) -> None:
    """Shows snapshots until Ctrl-C; a cluster that does not answer for a moment is asked again."""
    with Live(render(take_snapshot(cluster)), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every_s)
            try:
                live.update(render(take_snapshot(cluster)), refresh=True)
            except ClusterUnreachableError as error:
                live.update(Text(str(error), style="red"), refresh=True)
