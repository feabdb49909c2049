"""Jobs without a cluster: what is refused before anything is sent, and how answers of a dashboard are understood."""

from __future__ import annotations

import http.server
import io
import json
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from rich.console import Console
from typer.testing import CliRunner

from uvd.pipeline.cli import app
from uvd.pipeline.config import ConfigError
from uvd.pipeline.jobs import cluster as cluster_module
from uvd.pipeline.jobs import environment, following, submitting
from uvd.pipeline.jobs import package as package_module
from uvd.pipeline.jobs.cluster import Cluster, Job, connect, dashboard_url
from uvd.pipeline.jobs.command import parse_command
from uvd.pipeline.jobs.entry import check_image
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
from uvd.pipeline.jobs.package import build_wheel, package_for_cluster
from uvd.pipeline.jobs.submitting import Options, resume, submit
from uvd.pipeline.jobs.top import render, take_snapshot

TOKEN = "a-token-that-no-message-may-repeat"
CONFIG = "source: images\ndataset: images\n"


# --- commands ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "photos.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_a_command_travels_with_its_config_and_with_uris_as_they_are(config):
    parsed = parse_command(
        ["ingest", "images", "--out", "s3://b/uvd", "--config", config, "--set", 'input="s3://b/in"', "--overwrite"]
    )
    assert parsed.title == "ingest images"
    assert parsed.dataset == "s3://b/uvd"
    assert (parsed.config_name, parsed.config) == ("photos.yaml", CONFIG)
    assert not parsed.local
    words = list(parsed.arguments)
    assert words[:2] == ["ingest", "images"]
    assert words[-2:] == ["--address", "auto"]
    assert words[words.index("--config") + 1] == "photos.yaml"
    assert words[words.index("--set") + 1] == 'input="s3://b/in"'
    assert "--overwrite" in words


def test_the_key_is_of_what_is_done_not_of_how_it_was_written(config):
    key = parse_command(["ingest", "images", "--config", config, "--out", "s3://b/uvd"]).key
    assert parse_command(["ingest", "images", "--out", "s3://b/uvd", "--config", config, "--wait"]).key == key
    assert parse_command(["ingest", "images", "--config", config, "--out", "s3://b/other"]).key != key
    assert parse_command(["ingest", "images", "--config", config, "--out", "s3://b/uvd", "--limit", "3"]).key != key


def test_local_paths_are_found_and_made_absolute(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    (tmp_path / "b.json").touch()
    settings = [
        "--set",
        "input=photos",
        "--set",
        "annotations=[./a.json, b.json, s3://b/b.json]",
        "--set",
        "shard_size=4",
    ]
    parsed = parse_command(["ingest", "images", "--config", config, "--out", "data", *settings])
    assert {path.where for path in parsed.local} == {"--out", "--set input", "--set annotations"}
    words = list(parsed.arguments)
    assert words[words.index("--out") + 1] == str(tmp_path / "data")
    assert f'input="{tmp_path}/photos"' in words
    assert f'annotations=["{tmp_path}/a.json", "{tmp_path}/b.json", "s3://b/b.json"]' in words
    assert "shard_size=4" in words
    named = parse_command(["tokenize", "--dataset", "file:///data", "--tokenizer", "uvd-small"])
    assert [path.where for path in named.local] == ["--dataset"]
    folder = parse_command(["tokenize", "--dataset", "s3://b/d", "--tokenizer", "./tok"])
    assert folder.arguments[folder.arguments.index("--tokenizer") + 1] == str(tmp_path / "tok")


def test_local_paths_in_a_config_are_found(tmp_path):
    path = tmp_path / "with-input.yaml"
    path.write_text(f"{CONFIG}input: photos\nestimate: {{depth: {{model: /models/depth}}}}\n")
    parsed = parse_command(["ingest", "images", "--config", str(path), "--out", "s3://b/d"])
    assert [str(found) for found in parsed.local] == [
        "with-input.yaml: input photos",
        "with-input.yaml: estimate.depth.model /models/depth",
    ]
    assert f"input: {Path.cwd()}/photos" in parsed.config


def test_the_files_that_a_build_names_travel_in_its_config(tmp_path):
    (tmp_path / "photos.yaml").write_text(f"{CONFIG}input: s3://b/one\nshard_size: 5\n")
    (tmp_path / "build.yaml").write_text(
        "sources:\n  a: photos.yaml\n  b: {config: photos.yaml, input: s3://b/two}\n  c: {source: images}\n"
    )
    parsed = parse_command(["build", "--config", str(tmp_path / "build.yaml"), "--out", "s3://b/d", "--drop-images"])
    sources = yaml.safe_load(parsed.config)["sources"]
    assert sources["a"] == {"source": "images", "dataset": "images", "input": "s3://b/one", "shard_size": 5}
    assert sources["b"] == {**sources["a"], "input": "s3://b/two"}
    assert sources["c"] == {"source": "images"}
    assert "--drop-images" in parsed.arguments
    assert not parsed.local


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], SubmissionError, "say which command"),
        (["jobs", "list"], SubmissionError, "for this machine"),
        (["play", "--model", "x"], SubmissionError, "for this machine"),
        (["stats", "--dataset", "s3://key:secret@b/d"], SubmissionError, "--env"),
        (["tokenize", "--dataset", "s3://b/d", "--address", "auto"], SubmissionError, "belongs before"),
        (["ingest", "images", "--config", "nowhere.yaml", "--out", "s3://b/d"], ConfigError, "no config file"),
        (
            ["ingest", "images", "--config", "x.yaml", "--out", "s3://b/d", "--set", "a=[1"],
            ConfigError,
            "not YAML|no c",
        ),
    ],
)
def test_commands_that_cannot_be_sent(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        parse_command(arguments)
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_a_config_with_a_password_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("source: images\ninput: https://me:hidden@host/photos\n")
    with pytest.raises(SubmissionError, match="password") as caught:
        parse_command(["ingest", "images", "--config", str(path), "--out", "s3://b/d"])
    assert "hidden" not in str(caught.value)


def test_wrong_usage_of_the_command_is_told_as_its_own():
    told = CliRunner().invoke(app, ["jobs", "submit", "--address", "h", "--", "tokenize", "--datset", "s3://b/d"])
    assert told.exit_code == 2
    assert "--datset" in told.output


# --- the package ------------------------------------------------------------------------------------------------------
PYPROJECT = """
[build-system]
requires = ["setuptools", "wheel"]
build-backend = "setuptools.build_meta"
[project]
name = "uvd"
version = "7.0"
dependencies = ["av>=18"]
optional-dependencies = { dev = ["pytest"] }
[tool.setuptools]
package-dir = { "uvd" = "." }
packages = ["uvd", "uvd.pipeline"]
"""


def write_tree(tree: Path) -> None:
    """A small working tree that is built as ours is."""
    (tree / "pipeline").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(PYPROJECT)
    for name in ("__init__.py", "README.md", "LICENSE", "pipeline/__init__.py", "pipeline/code.py"):
        (tree / name).write_text(f"# {name}\n")


def test_the_wheel_is_the_same_for_the_same_files_wherever_they_lie(tmp_path, monkeypatch):
    trees = [tmp_path / "one", tmp_path / "two"]
    for tree in trees:
        write_tree(tree)
    # What a working tree has besides: earlier builds, caches, data.
    for name in ("build/lib/uvd/stale.py", "pipeline/__pycache__/code.pyc", "data/big.tar", "uvd.egg-info/SOURCES.txt"):
        (trees[1] / name).parent.mkdir(parents=True)
        (trees[1] / name).write_text("left over")
    (trees[1] / "pipeline/code.py").chmod(0o755)
    wheels = []
    for tree in trees:
        monkeypatch.setenv("UVD_WHEELS", str(tmp_path / f"{tree.name}-wheels"))
        wheels.append(build_wheel(tree))
    assert wheels[0] != wheels[1]
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    with zipfile.ZipFile(wheels[1]) as archive:
        code = [name for name in archive.namelist() if "dist-info/" not in name]
    assert sorted(code) == ["uvd/__init__.py", "uvd/pipeline/__init__.py", "uvd/pipeline/code.py"]
    assert not (trees[0] / "build").exists()
    monkeypatch.setattr(package_module, "_run_pip", None)  # from here on all comes from the cache
    package = package_for_cluster(tmp_path / "unpacked", trees[1])
    assert (package.folder / "pipeline/code.py").is_file()
    assert (package.folder.name, package.version, package.requirements) == ("uvd", "7.0", ("av>=18",))
    (trees[1] / "pipeline/code.py").write_text("changed")
    with pytest.raises(TypeError):  # a changed file is built anew
        build_wheel(trees[1])


def test_a_tree_that_cannot_be_built_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_WHEELS", str(tmp_path / "wheels"))
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/pyproject.toml").write_text(PYPROJECT.replace('version = "7.0"', 'version = "seven"'))
    with pytest.raises(SubmissionError, match=r"(?s)could not build.*pep440"):
        build_wheel(tmp_path / "tree")
    assert not (tmp_path / "wheels").exists()


# --- variables --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "A=b", "1A", "RAY_AUTH_TOKEN", "PATH", ""])
def test_variables_that_cannot_be_passed(name):
    with pytest.raises(SubmissionError):
        environment.read_variables([name])


def test_variables_travel_in_a_file_that_only_its_owner_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_TEST_KEY", "the value")
    environment.write_variables(environment.read_variables(["UVD_TEST_KEY"]), tmp_path)
    assert (tmp_path / environment.FILE).stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("UVD_TEST_KEY")
    monkeypatch.chdir(tmp_path)
    environment.apply()
    assert environment.os.environ["UVD_TEST_KEY"] == "the value"


# --- versions ---------------------------------------------------------------------------------------------------------
def test_an_image_of_another_uvd_or_without_a_package_is_refused():
    there = {"uvd": "0.1.0", "av": "16.1", "numpy": "2.3.5"}
    check_image("0.1.0", ["numpy>=2.0,<2.4", 'pywin32; sys_platform == "win32"'], there.get)
    check_image("0.1.0", ["numpy>=2"], {"numpy": "2.3.5"}.get)  # an image with the dependencies alone
    with pytest.raises(VersionSkewError, match=r"brings uvd 0\.2\.0.*made for uvd 0\.1\.0"):
        check_image("0.2.0", [], there.get)
    with pytest.raises(VersionSkewError, match=r"av>=18 \(16\.1 there\), ray>=2\.57 \(none there\)"):
        check_image("0.1.0", ["av>=18", "ray[default]>=2.57", "numpy"], there.get)


def test_what_is_sent_is_satisfied_by_what_is_installed_here(tmp_path, monkeypatch):
    monkeypatch.setenv("UVD_WHEELS", str(tmp_path / "wheels"))
    package = package_for_cluster(tmp_path / "package")
    assert (package.folder / "pipeline/jobs/entry.py").is_file()
    check_image(package.version, package.requirements)


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
