"""Metrics of a run for Prometheus, through Ray's agents: what was made, refused, tried again, how busy the devices are.

Every node's Ray agent serves what its processes count at `http://NODE:METRICS_PORT/metrics`, with or without Ray's
dashboard, each name with `ray_` before it; `cluster/grafana.json` draws them. The driver counts from the reports of
finished shards (about 30 µs a shard), so nothing is counted twice when a shard is tried again. Counters begin at
zero with each driver, as Prometheus expects; what a dataset holds in all is `uvd stats`' to say.

Ray keeps a histogram's buckets and guesses its sum from their middles, so an average of `uvd_shard_seconds` is rough.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from uvd.pipeline.progress import ShardJob, ShardReport

COUNTED = {
    "uvd_inputs_total": ("inputs", "Inputs of committed shards, used or rejected."),
    "uvd_sequences_total": ("sequences", "Visual sequences in committed shards."),
    "uvd_images_total": ("images", "Pictures in committed shards."),
    "uvd_tokens_total": ("tokens", "Tokens in committed shards, BOS and EOS among them."),
    "uvd_bytes_total": ("bytes", "Bytes of the tars of committed shards."),
}
"""Counters that add up one entry of `ShardReport.counts`: name → (entry, description)."""
SHARD_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds of the buckets of `uvd_shard_seconds`."""
UNNAMED = "unnamed"
"""The reason of rejects that a stage counts without naming reasons, as tokenizing does."""
BUSY_EVERY_S = 5.0
_TAGS = ("stage", "source")
_ERROR = re.compile(r"(?:[a-zA-Z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Timeout|Exit|Interrupt))\b")


class RunMetrics:
    """Counts the events of one run of one stage on one source; an observer of `run_jobs`, in a driver that has Ray.

    Args:
        stage: `ingest`, `tokenize`, …
        source: the folder below `sequences/`, or `TOKENIZER/NAME` below `tokens/`.
    """

    def __init__(self, stage: str, source: str) -> None:
        self._tags = {"stage": _label(stage), "source": _label(source)}
        self._counters = {name: Counter(name, about, _TAGS) for name, (_, about) in COUNTED.items()}
        self._rejects = Counter("uvd_rejects_total", "Refused inputs by reason.", (*_TAGS, "reason"))
        self._shards = Counter("uvd_shards_total", "Shards committed, or failed for good.", (*_TAGS, "outcome"))
        self._retries = Counter("uvd_retries_total", "Attempts after the first, by the error.", (*_TAGS, "error"))
        self._lacking = Counter("uvd_lacking_total", "Times that no node of the cluster could take a job.", _TAGS)
        self._in_flight = Gauge("uvd_jobs_in_flight", "Shards given to Ray and not settled.", _TAGS)
        self._waiting = Gauge("uvd_jobs_waiting", "Shards that wait for another attempt.", _TAGS)
        self._seconds = Histogram(
            "uvd_shard_seconds", "Wall time of a committed shard in its worker.", list(SHARD_SECONDS), _TAGS
        )

    def done(self, job: ShardJob, report: ShardReport) -> None:
        for name, (entry, _) in COUNTED.items():
            # A counter that a stage does not have, such as tokens while ingesting, is no series of zeros.
            if report.counts.get(entry, 0) > 0:
                self._counters[name].inc(report.counts[entry], self._tags)
        for reason, number in _reasons(report).items():
            self._rejects.inc(number, {**self._tags, "reason": _label(reason)})
        self._shards.inc(1, {**self._tags, "outcome": "done"})
        seconds = report.seconds.get("total", 0.0) + report.seconds.get("commit", 0.0)
        if seconds > 0:
            self._seconds.observe(seconds, self._tags)

    def retrying(self, job: ShardJob, attempt: int, error: str) -> None:
        self._retries.inc(1, {**self._tags, "error": error_kind(error)})

    def failed(self, job: ShardJob, error: str) -> None:
        self._shards.inc(1, {**self._tags, "outcome": "failed"})

    def lacking(self, what: str) -> None:
        self._lacking.inc(1, self._tags)

    def tick(self, in_flight: int, waiting: int) -> None:
        """Sets how many shards are with Ray, and how many wait for another attempt.

        To be called every few seconds: Ray forgets a gauge that was not set for two of its reports, 20 s.
        """
        self._in_flight.set(in_flight, self._tags)
        self._waiting.set(waiting, self._tags)

    def close(self) -> None:
        """Nothing is in flight any more."""
        self.tick(0, 0)


def error_kind(error: str) -> str:
    """The class that an error's text names last, such as `OutOfMemoryError`; `other` if it names none.

    Messages hold paths and numbers, and each new value of a label is a new series: only the class may become one.
    """
    found: list[str] = _ERROR.findall(error)
    return _label(found[-1]) if found else "other"


def _reasons(report: ShardReport) -> dict[str, int]:
    """Rejects by reason: those named, or else their bare number."""
    if report.reasons or report.counts.get("rejected", 0) <= 0:
        return report.reasons
    return {UNNAMED: report.counts["rejected"]}


def _label(value: str) -> str:
    """Ray refuses labels that are not ASCII."""
    return value.encode("ascii", "backslashreplace").decode("ascii")


def device_label(device: str) -> str:
    """Which device of its node this worker has, such as `cuda:1`."""
    return f"cuda:{ray.get_gpu_ids()[0]}" if device == "cuda" else device


class DeviceMetrics:
    """Publishes `uvd_gpu_busy_share`: the share of time in which a device had a batch, every five seconds.

    A share well below 1 means that the device waits for pictures: more CPUs to decode, or faster storage, would help.
    For a worker that holds one device; use it as a context manager, or keep it for the life of the process.

    Args:
        device: `cuda:0`, `cpu`, … Ray adds the node's address and the worker's id.
        busy_seconds: seconds since the start in which the device had a batch, from any thread.
    """

    def __init__(self, device: str, busy_seconds: Callable[[], float], every_s: float = BUSY_EVERY_S) -> None:
        self._gauge = Gauge("uvd_gpu_busy_share", "Share of time in which the device had a batch.", ("device",))
        self._tags = {"device": _label(device)}
        self._busy_seconds, self._every_s = busy_seconds, every_s
        self._last = (time.monotonic(), busy_seconds())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread; the device counts as idle from now on."""
        self._closed.set()
        self._thread.join(timeout=10)
        self._gauge.set(0.0, self._tags)

    def publish(self) -> float:
        """Publishes the share since the last time, and returns it."""
        (then, before), now, busy = self._last, time.monotonic(), self._busy_seconds()
        self._last = (now, busy)
        share = min(1.0, max(0.0, (busy - before) / max(now - then, 1e-9)))
        self._gauge.set(share, self._tags)
        return share

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self.publish()
