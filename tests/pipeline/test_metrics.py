"""Metrics and logs of workers, as a real Ray serves and writes them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray._raylet import Config

from uvd.pipeline.metrics import DeviceMetrics, RunMetrics, error_kind
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.worker_logging import (
    MAX_MESSAGE,
    JsonLines,
    WorkerHandler,
    in_this_context,
    log_as_json,
    logs_as_json,
    shard_context,
)

WAIT_S = 60.0


@dataclass(frozen=True)
class Job:
    shard: int


@dataclass(frozen=True)
class Scrape:
    """What Prometheus reads from a Ray node."""

    port: int

    def value(self, name: str, **labels: str) -> float | None:
        """Of the one series with these labels, of those that are there now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"ray_{name}" and labels.items() <= sample.labels.items()
        ]
        assert len(found) <= 1, f"{name} {labels}: {found}"
        return found[0] if found else None

    def wait_for(self, value: float, name: str, meanwhile: Callable[[], object] | None = None, **labels: str) -> None:
        """
        Args:
            meanwhile: sets a gauge again, which Ray forgets otherwise: here after two seconds.
        """
        deadline, seen = time.monotonic() + WAIT_S, None
        while time.monotonic() < deadline:
            if meanwhile is not None:
                meanwhile()
            with suppress(OSError):  # the agent starts some seconds after Ray
                seen = self.value(name, **labels)
            if seen == pytest.approx(value):
                return
            time.sleep(0.3)
        raise AssertionError(f"{name} {labels} is {seen}, not {value}")


@pytest.fixture(scope="module")
def scrape() -> Iterator[Scrape]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = dict(os.environ)
    # Other tests leave the environment of a local Ray, and Ray keeps what it has read once.
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_metrics_report_interval_ms="500")
    Config.initialize("")
    try:
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _metrics_export_port=port,
            object_store_memory=100 << 20,
            log_to_driver=False,
        )
        yield Scrape(port)
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def test_a_runs_events_become_series(scrape):
    metrics = RunMetrics("ingest", "photos")
    images = {"inputs": 10, "used": 8, "sequences": 8, "images": 16, "bytes": 5000, "rejected": 2}
    metrics.done(Job(0), ShardReport(0, images, {"decode": 1, "too-small": 1}, {"total": 3.0, "commit": 1.5}))
    metrics.done(Job(1), ShardReport(1, images, {"decode": 2}, {"total": 45.0}))
    metrics.retrying(Job(2), 2, "OutOfMemoryError: task was killed on node 10.1.2.3")
    metrics.failed(Job(2), "ray::make_shard()\n  File …\nValueError: bad")
    metrics.lacking("GPU")
    run = {"stage": "ingest", "source": "photos"}
    scrape.wait_for(20, "uvd_inputs_total", **run)
    scrape.wait_for(16, "uvd_sequences_total", **run)
    scrape.wait_for(32, "uvd_images_total", **run)
    scrape.wait_for(10000, "uvd_bytes_total", **run)
    assert scrape.value("uvd_tokens_total", **run) is None  # no series of zeros for what a stage does not make
    scrape.wait_for(3, "uvd_rejects_total", **run, reason="decode")
    scrape.wait_for(1, "uvd_rejects_total", **run, reason="too-small")
    scrape.wait_for(2, "uvd_shards_total", **run, outcome="done")
    scrape.wait_for(1, "uvd_shards_total", **run, outcome="failed")
    scrape.wait_for(1, "uvd_retries_total", **run, error="OutOfMemoryError")
    scrape.wait_for(1, "uvd_lacking_total", **run)
    scrape.wait_for(7, "uvd_jobs_in_flight", lambda: metrics.tick(7, 3), **run)
    scrape.wait_for(3, "uvd_jobs_waiting", lambda: metrics.tick(7, 3), **run)
    scrape.wait_for(2, "uvd_shard_seconds_count", **run)
    scrape.wait_for(1, "uvd_shard_seconds_bucket", **run, le="5.0")  # 3.0 and 1.5 s are one shard
    scrape.wait_for(2, "uvd_shard_seconds_bucket", **run, le="60.0")
    scrape.wait_for(0, "uvd_jobs_in_flight", metrics.close, **run)


def test_two_runs_of_one_driver_are_told_apart(scrape):
    for source, tokens in (("lvm-vqgan/a", 4096), ("lvm-vqgan/b", 8192)):
        metrics = RunMetrics("tokenize", source)
        metrics.done(Job(0), ShardReport(0, {"images": 1, "tokens": tokens, "rejected": 3}))
    scrape.wait_for(8192, "uvd_tokens_total", stage="tokenize", source="lvm-vqgan/b")
    scrape.wait_for(4096, "uvd_tokens_total", stage="tokenize", source="lvm-vqgan/a")
    # Tokenizing counts rejects without their reasons.
    scrape.wait_for(3, "uvd_rejects_total", stage="tokenize", source="lvm-vqgan/a", reason="unnamed")


def test_labels_that_are_not_ascii_do_not_end_the_run(scrape):
    metrics = RunMetrics("ingest", "é")
    metrics.done(Job(0), ShardReport(0, {"images": 5}, {"größe": 1}))
    scrape.wait_for(5, "uvd_images_total", source="\\xe9")


ALONE = "UVD_TEST_ALONE"


def test_the_busy_share_of_a_device_in_a_process_of_its_own():
    """Workers of a process that had a Ray without metrics before show none, whatever is set since."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::test_the_busy_share"]
    done = subprocess.run(
        command, env={**clean, ALONE: "1"}, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 passed" in done.stdout


@pytest.mark.skipif(ALONE not in os.environ, reason="run by the test above it")
def test_the_busy_share(scrape):
    class Actor:
        def __init__(self) -> None:
            self.metrics = DeviceMetrics("cuda:0", time.monotonic, every_s=0.2)  # busy all the time

        def close(self) -> None:
            self.metrics.close()

    actor = ray.remote(num_cpus=0)(Actor).remote()
    scrape.wait_for(1, "uvd_gpu_busy_share", device="cuda:0")
    scrape.wait_for(0, "uvd_gpu_busy_share", lambda: ray.get(actor.close.remote(), timeout=WAIT_S), device="cuda:0")


def test_a_share_is_of_the_time_since_the_last_one():
    busy = [100.0]
    with DeviceMetrics("cpu", lambda: busy[0], every_s=3600) as metrics:
        assert metrics.publish() == 0
        start = time.monotonic()
        time.sleep(0.2)
        busy[0] += (time.monotonic() - start) / 2
        assert 0.1 < metrics.publish() <= 0.5  # a slow machine makes it less
        busy[0] += 3600  # a batch cannot have taken longer than the time
        assert metrics.publish() == 1


def test_the_thread_publishes_by_itself():
    published: list[float] = []

    class Heard(DeviceMetrics):
        def publish(self) -> float:
            published.append(super().publish())
            return published[-1]

    with Heard("cpu", time.monotonic, every_s=0.02):
        deadline = time.monotonic() + WAIT_S
        while len(published) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(published) >= 3
    assert all(0 <= share <= 1 for share in published)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("WorkerCrashedError: The worker died unexpectedly", "WorkerCrashedError"),
        ("ray::make_shard() (pid=1)\n  File a.py\nOSError: [Errno 28] No space left on device", "OSError"),
        ("botocore.exceptions.ReadTimeout: s3 said nothing", "ReadTimeout"),
        ("s3://bucket/key: the store answered 503 eight times", "other"),
        ("", "other"),
    ],
)
def test_an_error_is_counted_by_its_class(error, kind):
    assert error_kind(error) == kind


def _noisy_shard(shard: int, fails: bool) -> str:
    with shard_context("ingest", "photos", shard, attempt=2):
        logging.getLogger("uvd.sources.laion").info("fetched %s", "https://user:secret@host/a.jpg\nsecond line")
        logging.getLogger("somebody.else").info("chatter of a library")
        warnings.warn("an odd profile", UserWarning, stacklevel=1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(in_this_context(logging.getLogger("uvd.decode").warning), "from a thread").result(timeout=30)
        if fails:
            raise OSError("disk full")
    logging.getLogger("uvd").warning("between shards")
    return str(ray.get_runtime_context().get_worker_id())


def test_workers_log_lines_of_json_that_name_their_shard(scrape):
    remote = ray.remote(num_cpus=1, max_retries=0)(_noisy_shard)
    worker = ray.get(remote.remote(41, False), timeout=WAIT_S)
    with pytest.raises(OSError, match="disk full"):
        ray.get(remote.remote(42, True), timeout=WAIT_S)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    lines = _json_lines(session, worker)
    first = [line for line in lines if line.get("shard") == "000041"]
    assert all(line["stage"] == "ingest" and line["source"] == "photos" and line["attempt"] == 2 for line in first)
    messages = [line["message"] for line in first]
    assert messages[0] == "shard begun"
    assert "fetched https://…@host/a.jpg\nsecond line" in messages
    assert "from a thread" in messages
    assert any("an odd profile" in message for message in messages)
    assert messages[-1].startswith("shard done in ")
    assert not any("chatter" in line["message"] for line in lines)
    assert {line["node"] for line in lines} == {socket.gethostname()}
    assert any(line["message"] == "between shards" and "shard" not in line for line in lines)


def _json_lines(session: Path, worker: str) -> list[dict]:
    """What the worker wrote, when its last line is there."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        (path,) = (session / "logs").glob(f"worker-{worker}-*.err")
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.startswith('{"time"')]
        if any(line.get("shard") == "000042" and "exception" in line for line in lines):
            failed = next(line for line in lines if "exception" in line)
            assert failed["level"] == "ERROR"
            assert failed["exception"].endswith("OSError: disk full")
            return lines
        time.sleep(0.2)
    raise AssertionError(f"no line of the failed shard in {path}")


def test_a_driver_keeps_its_own_logging(capsys):
    with shard_context("ingest", "photos", 1):
        pass
    with pytest.raises(ValueError, match="as it was"), shard_context("ingest", "photos", 1):
        raise ValueError("as it was")
    assert not logs_as_json()
    assert capsys.readouterr().err == ""


def test_logging_is_turned_on_once_and_keeps_messages_short(capsys):
    root, level = logging.getLogger(), logging.getLogger("uvd").level
    try:
        log_as_json()
        log_as_json()
        assert sum(isinstance(handler, WorkerHandler) for handler in root.handlers) == 1
        logging.getLogger("uvd").warning("a" * 10**6 + " s3://key:secret@bucket")
        line = json.loads(capsys.readouterr().err)
        assert len(line["message"]) < MAX_MESSAGE + 100
        assert line["message"].endswith("s3://…@bucket")
    finally:
        root.handlers = [handler for handler in root.handlers if not isinstance(handler, WorkerHandler)]
        logging.getLogger("uvd").setLevel(level)
        logging.captureWarnings(False)


def test_a_password_at_the_cut_does_not_show():
    text = "x" * (MAX_MESSAGE // 2 - 12) + "https://user:secret@host/" + "y" * MAX_MESSAGE
    record = logging.LogRecord("uvd", logging.INFO, __file__, 1, text, None, None)
    assert "secret" not in JsonLines().format(record)
