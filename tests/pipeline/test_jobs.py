"""Jobs without a cluster: what is refused before anything is sent, and how answers of a dashboard are understood."""

from __future__ import annotations

import http.server
import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner

from uvd.pipeline.cli import app
from uvd.pipeline.jobs import cluster as cluster_module
from uvd.pipeline.jobs import environment, following, submitting
from uvd.pipeline.jobs.cluster import Cluster, Job, connect, dashboard_url
from uvd.pipeline.jobs.command import parse_command
from uvd.pipeline.jobs.errors import (
    ClusterTokenError,
    ClusterUnreachableError,
    JobError,
    JobRunningError,
    SubmissionError,
    VersionSkewError,
)
from uvd.pipeline.jobs.following import exit_code, follow, outcome
from uvd.pipeline.jobs.listing import job_record, jobs_table
from uvd.pipeline.jobs.submitting import Options, resume, submit
from uvd.pipeline.jobs.top import render, take_snapshot

TOKEN = "a-token-that-no-message-may-repeat"


# --- a dashboard ------------------------------------------------------------------------------------------------------
class FakeDashboard:
    """Answers as a dashboard does; what it answers can be changed."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/api/authentication_mode": {"authentication_mode": "token"},
            "/api/version": {"ray_version": ray.__version__},
            "/api/v0/cluster_metadata": {
                "data": {"rayVersion": ray.__version__, "pythonVersion": cluster_module._python()}
            },
            "/nodes": {"data": {"summary": [{"hostname": "far-away", "raylet": {"state": "ALIVE"}}]}},
            "/api/jobs/": [],
            "/api/cluster_status": {"data": {}},
        }
        self.posted: list[str] = []
        dashboard = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path != "/api/authentication_mode" and self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self.send_error(403 if self.headers["Authorization"] else 401)
                elif path in dashboard.answers:
                    body = json.dumps(dashboard.answers[path]).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                else:
                    self.send_error(404)

            def do_POST(self) -> None:
                dashboard.posted.append(self.path)
                self.send_error(500)

            def do_PUT(self) -> None:
                self.do_POST()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def dashboard(monkeypatch, tmp_path) -> Iterator[FakeDashboard]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    fake = FakeDashboard()
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        fake.server.server_close()
        thread.join(10)


@pytest.mark.parametrize("address", ["auto", "local", "ray://head:10001", "ftp://head", "", "http://", "head:port"])
def test_addresses_of_something_else(address):
    with pytest.raises(ClusterUnreachableError, match=r"http://HEAD:8265"):
        dashboard_url(address)


def test_addresses_that_will_do():
    assert dashboard_url("head:8265/") == "http://head:8265"
    assert dashboard_url("head") == dashboard_url("http://head:") == "http://head:8265"
    assert dashboard_url("https://rays.example.com/") == "https://rays.example.com"
    with pytest.raises(ClusterUnreachableError) as caught:
        dashboard_url("http://me:hidden@head:8265")
    assert "hidden" not in str(caught.value)


def test_nobody_there():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(
        ClusterUnreachableError, match=rf"no Ray dashboard answers at http://127.0.0.1:{port} .*refused"
    ):
        connect(f"127.0.0.1:{port}")


def test_somebody_who_never_answers(monkeypatch):
    monkeypatch.setattr(cluster_module, "TIMEOUT_S", (0.3, 0.3))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ClusterUnreachableError, match="timed out"):
            connect(f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(cluster_module, "_request", lambda *_: None)
        with pytest.raises(ClusterUnreachableError):  # Ray's client has no time limit of its own
            _ = Cluster(f"http://127.0.0.1:{silent.getsockname()[1]}", None).client


def test_another_kind_of_server(dashboard):
    del dashboard.answers["/api/authentication_mode"]
    with pytest.raises(ClusterUnreachableError, match="no dashboard of Ray"):
        connect(dashboard.url)


def test_tokens(dashboard, monkeypatch, tmp_path):
    assert connect(dashboard.url).jobs() == []
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(ClusterTokenError, match=r"refuses the token from RAY_AUTH_TOKEN"):
        connect(dashboard.url)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(ClusterTokenError, match=r"wants a token.*RAY_AUTH_TOKEN_PATH=FILE"):
        connect(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterTokenError, match="cannot be read"):
        connect(dashboard.url)
    (tmp_path / "none").write_text("wrong\n")
    with pytest.raises(ClusterTokenError, match=rf"from {tmp_path}/none") as caught:
        connect(dashboard.url)
    assert "wrong" not in str(caught.value)
    (tmp_path / "none").write_text(TOKEN + "\n")
    assert connect(dashboard.url).jobs() == []


def test_a_cluster_that_takes_anybody_is_refused_unless_that_is_meant(dashboard, monkeypatch):
    dashboard.answers["/api/authentication_mode"] = {"authentication_mode": "disabled"}
    with pytest.raises(ClusterTokenError, match="RAY_AUTH_MODE=token"):
        connect(dashboard.url)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert connect(dashboard.url).auth_mode == "disabled"


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"rayVersion": "2.9.3"}, rf"Ray {ray.__version__} here, 2\.9\.3 there"),
        ({"pythonVersion": "3.10.14"}, r"Python 3\.\d+\.\d+ here, 3\.10\.14 there"),
    ],
)
def test_other_versions_are_refused_before_anything_is_sent(dashboard, theirs, message):
    dashboard.answers["/api/v0/cluster_metadata"]["data"].update(theirs)
    command = parse_command(["tokenize", "--dataset", "s3://b/d"])
    with pytest.raises(VersionSkewError, match=message):
        submit(connect(dashboard.url), command, Options(), print)
    assert not dashboard.posted


def test_another_patch_release_of_ray_is_taken(dashboard):
    major, minor, patch = ray.__version__.split(".")[:3]
    dashboard.answers["/api/v0/cluster_metadata"]["data"]["rayVersion"] = f"{major}.{minor}.{int(patch) + 1}"
    connect(dashboard.url).check_versions()


def test_local_paths_are_refused_on_a_cluster_of_other_machines(dashboard, monkeypatch):
    command = parse_command(["tokenize", "--dataset", "/data/uvd"])
    with pytest.raises(SubmissionError, match=r"(?s)--dataset /data/uvd.*s3://.*--shared-paths"):
        submit(connect(dashboard.url), command, Options(), print)
    assert not dashboard.posted
    monkeypatch.setattr(cluster_module.platform, "node", lambda: "far-away")
    assert connect(dashboard.url).is_this_machine()


# --- submitting, following --------------------------------------------------------------------------------------------
def job(number: int, state: str, **more: Any) -> Job:
    about = {"key": "0123abcd", "title": "tokenize", "arguments": ["tokenize"], "dataset": "s3://b/d"}
    values = {"started": 100.0, "ended": 110.0, "exit_code": None, "message": "", "about": about, **more}
    return Job(f"uvd-tokenize-0123abcd-{number}", state, "exec python …", **values)


class FakeCluster:
    """Keeps what is submitted; jobs are told in turn."""

    url, auth_mode = "http://head:8265", "token"

    def __init__(self, *turns: list[Job]) -> None:
        self.turns = list(turns)
        self.sent: list[tuple[str, str, Any, Any]] = []
        self.taken: set[str] = set()

    def check_versions(self) -> None:
        pass

    def jobs(self) -> list[Job]:
        return self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]

    def submit(self, job_id: str, entrypoint: str, runtime_env: Any, about: Any) -> bool:
        if job_id in self.taken:
            return False
        self.sent.append((job_id, entrypoint, runtime_env, about))
        return True


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """No wheel is built, no pause is made."""
    from uvd.pipeline.jobs.package import Package

    monkeypatch.setattr(submitting, "package_for_cluster", lambda _: Package(tmp_path / "uvd", "0.1.0", "feed", ()))
    monkeypatch.setattr(submitting, "_POLL_S", 0.0)


def command():
    from dataclasses import replace

    return replace(parse_command(["tokenize", "--dataset", "s3://b/d"]), key="0123abcd")


def test_jobs_of_a_command_are_counted(quick):
    cluster = FakeCluster([job(1, "FAILED"), job(9, "SUCCEEDED"), job(10, "STOPPED")])
    assert submit(cluster, command(), Options(), print) == "uvd-tokenize-0123abcd-11"
    _, entrypoint, runtime_env, about = cluster.sent[0]
    assert entrypoint.startswith("exec python -m uvd.pipeline.jobs.entry tokenize --dataset s3://b/d")
    assert "worker_process_setup_hook" not in runtime_env
    assert about["arguments"] == ["tokenize", "--dataset", "s3://b/d", "--address", "auto"]


def test_a_second_submission_is_refused_or_waits(quick):
    with pytest.raises(JobRunningError, match=r"runs already as uvd-tokenize-0123abcd-2 .*--wait"):
        submit(FakeCluster([job(2, "RUNNING")]), command(), Options(), print)
    told: list[str] = []
    cluster = FakeCluster([job(2, "PENDING")], [job(2, "RUNNING")], [job(2, "FAILED")])
    assert submit(cluster, command(), Options(wait=True), told.append) == "uvd-tokenize-0123abcd-3"
    assert told == ["waiting for uvd-tokenize-0123abcd-2, which runs the same command"]


def test_of_two_who_submit_at_once_one_is_told(quick):
    cluster = FakeCluster([], [], [job(1, "PENDING")])
    cluster.taken = {"uvd-tokenize-0123abcd-1"}
    with pytest.raises(JobRunningError, match="uvd-tokenize-0123abcd-1"):
        submit(cluster, command(), Options(), print)
    assert not cluster.sent


def test_resuming_sends_the_same_command_with_the_same_key(quick, monkeypatch):
    monkeypatch.setenv("UVD_TEST_KEY", "value")
    cluster = FakeCluster([])
    submit(cluster, command(), Options(env=("UVD_TEST_KEY",), python="python3.11"), print)
    stopped = job(1, "STOPPED", about=json.loads(json.dumps(cluster.sent[0][3])))
    cluster.turns = [[stopped]]
    assert resume(cluster, stopped, Options(), print) == "uvd-tokenize-0123abcd-2"
    first, second = cluster.sent
    assert second[1] == first[1]
    assert second[2]["worker_process_setup_hook"] == environment.HOOK
    assert "value" not in json.dumps([first[2], first[3]])
    with pytest.raises(JobError, match="not submitted by"):
        resume(cluster, job(1, "STOPPED", about={}), Options(), print)


def test_a_python_that_is_a_shell_command_is_refused(quick):
    with pytest.raises(SubmissionError, match="--python"):
        submit(FakeCluster([]), command(), Options(python="python; rm -rf /"), print)


class BrokenTail:
    """A client whose connection breaks again and again, each time a little later."""

    def __init__(self, log: str) -> None:
        self.log, self.connections = log, 0

    async def tail_job_logs(self, _: str):
        self.connections += 1
        for character in self.log[: 4 * self.connections]:
            yield character
        if 4 * self.connections < len(self.log):
            raise RuntimeError("connection closed unexpectedly")


class Followed(FakeCluster):
    def __init__(self, log: str) -> None:
        super().__init__([])
        self.client = BrokenTail(log)

    def job(self, job_id: str) -> Job:
        over = 4 * self.client.connections >= len(self.client.log)
        return job(1, "SUCCEEDED" if over else "RUNNING", exit_code=0 if over else None)

    def log(self, _: str) -> str:
        return self.client.log + "last line\n"


def test_a_log_over_broken_connections_is_written_once(monkeypatch):
    monkeypatch.setattr(following, "_PAUSE_S", 0.0)
    written: list[str] = []
    ended = follow(Followed("one\ntwo\nthree\n"), "x", written.append)
    assert "".join(written) == "one\ntwo\nthree\nlast line\n"
    assert ended.state == "SUCCEEDED"


def test_following_gives_up_on_a_cluster_that_is_gone(monkeypatch):
    monkeypatch.setattr(following, "_PAUSE_S", 0.0)
    monkeypatch.setattr(following, "OUTAGE_S", -1.0)
    with pytest.raises(JobError, match=r"may well go on.*jobs logs x --follow"):
        follow(Followed("a long log, never read to its end"), "x", lambda _: None)


def test_ctrl_c_ends_the_following_and_says_how_to_go_on(dashboard, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    dashboard.answers["/api/jobs/uvd-1"] = {"submission_id": "uvd-1", "status": "RUNNING"}
    monkeypatch.setattr(following, "follow", interrupted)
    told = CliRunner().invoke(app, ["jobs", "logs", "uvd-1", "--follow", "--address", dashboard.url])
    assert told.exit_code == 130
    assert "the job goes on. `uvd jobs logs uvd-1 --follow`" in told.stderr
    assert "`uvd jobs stop uvd-1` ends it" in told.stderr


def test_exit_codes_are_those_of_the_command():
    assert exit_code(job(1, "SUCCEEDED", exit_code=0)) == 0
    assert [exit_code(job(1, "FAILED", exit_code=code)) for code in (1, 2, 3)] == [1, 2, 3]
    assert exit_code(job(1, "STOPPED")) == 3
    assert exit_code(job(1, "FAILED", exit_code=-9)) == 1
    assert exit_code(job(1, "FAILED")) == 1
    assert "signal 9" in outcome(job(1, "FAILED", exit_code=-9))
    assert "no such image" in outcome(job(1, "FAILED", message="no such image"))
    assert "jobs resume" in outcome(job(1, "STOPPED"))


def test_jobs_as_table_and_json():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(jobs_table([job(1, "FAILED", exit_code=3), job(2, "SUCCEEDED", started=None, about={})]))
    text = console.export_text()
    assert "uvd-tokenize-0123abcd-1" in text
    assert "failed (3)" in text
    assert "10 s" in text
    record = job_record(job(1, "FAILED", exit_code=3))
    assert (record["command"], record["state"], record["seconds"]) == ("uvd tokenize", "failed", 10.0)


def test_top_says_what_is_waited_for_and_what_gpus_do(dashboard):
    gibibyte = 1 << 30
    node = {
        "hostname": "gpu-1",
        "cpu": 37.0,
        "mem": [64 * gibibyte, 16 * gibibyte],
        "gpus": [{"utilizationGpu": 91, "memoryUsed": 20480, "memoryTotal": 81920}],
        "raylet": {
            "nodeId": "ab",
            "state": "ALIVE",
            "resourcesTotal": {"CPU": 8.0, "GPU": 1.0, "memory": 1.0, "objectStoreMemory": 2.0 * gibibyte},
        },
    }
    load = {
        "usageByNode": {"ab": {"CPU": [5.0, 8.0], "objectStoreMemory": [gibibyte / 2, 2 * gibibyte]}},
        "resourceDemand": [[{"GPU": 1.0}, 2]],
    }
    dashboard.answers["/nodes"] = {"data": {"summary": [node]}}
    dashboard.answers["/api/cluster_status"] = {"data": {"clusterStatus": {"loadMetricsReport": load}}}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(take_snapshot(connect(dashboard.url))))
    text = console.export_text()
    for expected in ("gpu-1", "37 %", "48.0/64.0 GiB", "0.5/2.0 GiB", "91 % 20/80 GiB", "5/8 CPU, 0/1 GPU"):
        assert expected in text
    assert "waiting for 1 GPU: 2 tasks or actors" in text
