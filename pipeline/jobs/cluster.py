"""A Ray cluster as its dashboard shows it: reached with a token, checked for versions, asked about jobs and nodes.

All goes through Ray's Jobs API and the dashboard's REST API (Ray 2.60), over HTTP, with a time limit on every request.
Ray's token is found as Ray itself does: `RAY_AUTH_TOKEN`, the file `RAY_AUTH_TOKEN_PATH`, or `~/.ray/auth_token`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from uvd.pipeline.jobs.errors import ClusterTokenError, ClusterUnreachableError, JobError, VersionSkewError

DASHBOARD_PORT = 8265
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two parts of an answer."""
METADATA = "uvd"
"""Under this key Ray's metadata of a job holds ours, as JSON."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LIVE = ("PENDING", "RUNNING")
_DEFAULT_TOKEN = Path(".ray/auth_token")
_BODY = 300


@dataclass(frozen=True)
class Job:
    """One job of the cluster; times in seconds since 1970.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of the command, if it ended by itself.
        node: id of the node that its command runs on, once it does.
        about: what was kept with it when it was submitted: title, command, dataset, key, config, ...; empty if another
            program submitted it.
    """

    id: str
    state: str
    entrypoint: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str
    node: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def live(self) -> bool:
        return self.state in _LIVE


@dataclass(frozen=True)
class Token:
    """The value, and where it was found, which is all that messages name."""

    value: str
    origin: str


def find_token() -> Token | None:
    """Ray's token, looked for where Ray looks.

    Raises:
        ClusterTokenError: if RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path.home() / _DEFAULT_TOKEN
    try:
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return None
        raise ClusterTokenError(f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read: {error}") from error
    return Token(value, str(path)) if value else None


def dashboard_url(address: str) -> str:
    """`http://host:port` of what a person gave as the cluster's address.

    Raises:
        ClusterUnreachableError: if it is the address of another of Ray's services.
    """
    text = address.strip()
    text = (text if "://" in text else f"http://{text}").rstrip("/:")
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = None
        parts = parts._replace(netloc="")
    if parts.scheme not in ("http", "https") or not parts.hostname or address.strip() in ("auto", "local"):
        raise ClusterUnreachableError(
            f"--address {address}: jobs are sent to the dashboard of the cluster's head, as in "
            f"http://HEAD:{DASHBOARD_PORT} (`ray start --head` prints it)"
        )
    if parts.username or parts.password:
        raise ClusterUnreachableError("--address holds a name or password; Ray's token comes from RAY_AUTH_TOKEN_PATH")
    return f"{text}:{DASHBOARD_PORT}" if port is None and parts.scheme == "http" else text


class Cluster:
    """A connection to the dashboard at `url`; make one by `connect`."""

    def __init__(self, url: str, token: Token | None) -> None:
        self.url = url
        self.auth_mode = "token" if token else "disabled"
        self._headers = {"Authorization": f"Bearer {token.value}"} if token else {}
        self._origin = token.origin if token else ""
        self._client: Any = None

    # --- requests -----------------------------------------------------------------------------------------------------
    def get(self, path: str, **query: str) -> Any:
        """Asks the dashboard; JSON, or text where it answers so.

        Raises:
            ClusterUnreachableError: if there is no answer, or one that is not Ray's.
            ClusterTokenError: if the token is refused.
            JobError: for any other answer that is an error.
        """
        response = _request(f"{self.url}{path}", self._headers, query)
        if response.status_code in (401, 403):
            raise ClusterTokenError(
                f"the cluster at {self.url} refuses the token from {self._origin}: it is another cluster's, or was "
                "changed. Take the one that the head was started with: RAY_AUTH_TOKEN_PATH=FILE, or `ray "
                "get-auth-token` on the head"
            )
        if not response.ok:
            raise JobError(f"{self.url}{path} answered {response.status_code}: {response.text[:_BODY].strip()}")
        return _parsed(response)

    @property
    def client(self) -> Any:
        """Ray's own client, with time limits."""
        if self._client is None:
            self._client = _make_client(self.url, self._headers)
        return self._client

    # --- jobs ---------------------------------------------------------------------------------------------------------
    def jobs(self) -> list[Job]:
        """All jobs of the cluster, the newest first."""
        found = [_job(record) for record in self.get("/api/jobs/") if record.get("submission_id")]
        return sorted(found, key=lambda job: job.started or 0, reverse=True)

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            JobError: if there is none of this id.
        """
        try:
            record = self.get(f"/api/jobs/{job_id}")
        except JobError as error:
            if " answered 404" not in str(error):
                raise
            raise JobError(f"no job {job_id!r} at {self.url}; `uvd jobs list` shows what there is") from error
        return _job(record)

    def log(self, job_id: str) -> str:
        """All that the job has printed so far."""
        return str(self.get(f"/api/jobs/{job_id}/logs").get("logs") or "")

    def last_lines(self, job: Job, lines: int) -> list[str]:
        """The end of a job's log; empty if there is none yet."""
        if not job.node:
            return []
        name = f"job-driver-{job.id}.log"
        try:
            return str(self.get("/api/v0/logs/file", node_id=job.node, filename=name, lines=str(lines))).splitlines()
        except JobError as error:
            if " answered 500" not in str(error):  # Ray's answer while there is no such file
                raise
            return []

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
        """Sends a job with its folders; False if the id was taken meanwhile.

        Raises:
            JobError: if the cluster refuses it.
        """
        metadata = {"job_name": str(about.get("title", job_id)), METADATA: json.dumps(about)}
        with _ray_errors(self.url):
            try:
                self.client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, runtime_env=dict(runtime_env), metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def stop(self, job_id: str) -> None:
        """Asks the job to end: SIGTERM to its command, later SIGKILL."""
        with _ray_errors(self.url):
            self.client.stop_job(job_id)

    # --- machines and versions ----------------------------------------------------------------------------------------
    def nodes(self) -> list[dict[str, Any]]:
        """What the dashboard knows of each node."""
        return list(self.get("/nodes", view="summary")["data"]["summary"])

    def is_this_machine(self) -> bool:
        """Whether all nodes run on the machine that asks."""
        here = platform.node()
        alive = [node for node in self.nodes() if node.get("raylet", {}).get("state") == "ALIVE"]
        return bool(alive) and all(node.get("hostname") == here for node in alive)

    def check_versions(self) -> None:
        """Refuses a cluster whose Ray or Python is not ours; patch releases of one minor version go together.

        Raises:
            VersionSkewError: names both versions.
        """
        import ray

        theirs = self.get("/api/v0/cluster_metadata")["data"]
        pairs = (("Ray", ray.__version__, theirs["rayVersion"]), ("Python", _python(), theirs["pythonVersion"]))
        different = [
            f"{name} {ours} here, {other} there" for name, ours, other in pairs if _minor(ours) != _minor(other)
        ]
        if different:
            raise VersionSkewError(
                f"the cluster at {self.url} is not of this machine's versions: {'; '.join(different)}. Install the "
                "cluster's here, or start the cluster from an image made of this version of uvd (cluster/Containerfile)"
            )


def connect(address: str) -> Cluster:
    """Reaches the dashboard and makes sure that the token is right.

    Raises:
        ClusterUnreachableError: if nothing of Ray's answers.
        ClusterTokenError: if the token is missing or wrong, or if the cluster takes any caller while this machine's
            RAY_AUTH_MODE does not say `disabled`.
    """
    url = dashboard_url(address)
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower()
    response = _request(f"{url}/api/authentication_mode", {}, {})
    answer = _parsed(response) if response.ok else None
    if not isinstance(answer, dict) or "authentication_mode" not in answer:
        raise ClusterUnreachableError(
            f"what answers at {url} is no dashboard of Ray 2.57 or later ({response.status_code}). Its port is "
            f"{DASHBOARD_PORT} unless --dashboard-port said otherwise"
        )
    if answer["authentication_mode"] == "disabled":
        if wanted != "disabled":
            raise ClusterTokenError(
                f"the cluster at {url} asks for no token: whoever reaches it can run code on it, and would get what "
                "you send. Start it with RAY_AUTH_MODE=token, or, in a closed network, set RAY_AUTH_MODE=disabled here"
            )
        return Cluster(url, None)
    token = find_token()
    if token is None:
        raise ClusterTokenError(
            f"the cluster at {url} wants a token, and there is none here. Put it into a file that only you can read "
            "and set RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN); `ray get-auth-token` on the head prints it"
        )
    cluster = Cluster(url, token)
    cluster.get("/api/version")
    return cluster


def _request(url: str, headers: Mapping[str, str], query: Mapping[str, str]) -> Any:
    import requests

    try:
        return requests.get(url, headers=dict(headers), params=dict(query), timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise unreachable(url, error) from error


def unreachable(url: str, error: Exception) -> ClusterUnreachableError:
    """What to say when a request got no answer."""
    parts = urlsplit(url)
    reason = str(error).rpartition(": ")[2].strip("')>\"") or type(error).__name__
    return ClusterUnreachableError(
        f"no Ray dashboard answers at {parts.scheme}://{parts.netloc} ({type(error).__name__}: {reason}). Is the "
        "cluster up, is that its head, and is the way open (ssh -L, kubectl port-forward, --dashboard-host)?"
    )


def _parsed(response: Any) -> Any:
    if "json" not in response.headers.get("Content-Type", ""):
        return response.text
    try:
        return response.json()
    except ValueError:
        return response.text


@contextmanager
def _ray_errors(url: str) -> Iterator[None]:
    """What Ray's client raises, as errors that say what to do."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterTokenError(f"the cluster at {url} no longer takes the token") from error
    except OSError as error:  # also those of requests
        raise unreachable(url, error) from error
    except RuntimeError as error:
        raise JobError(f"the cluster at {url} refused: {str(error)[:2000]}") from error


def _make_client(url: str, headers: Mapping[str, str]) -> Any:
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk
    from ray.job_submission import JobSubmissionClient

    class LimitedClient(JobSubmissionClient):
        """Ray's client waits for ever for a host that does not answer."""

        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": TIMEOUT_S, **more})

    for module in (dashboard_sdk, packaging, sdk):  # which tell of every upload
        logging.getLogger(module.__name__).setLevel(logging.WARNING)
    # They would win over the address that was given.
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        with _ray_errors(url):
            return LimitedClient(url, headers=dict(headers))
    finally:
        os.environ.update(hidden)


def _job(record: Mapping[str, Any]) -> Job:
    metadata = record.get("metadata") or {}
    try:
        about = json.loads(metadata.get(METADATA, "{}"))
    except ValueError:
        about = {}

    def seconds(name: str) -> float | None:
        value = record.get(name)
        return value / 1000 if value else None

    return Job(
        id=str(record.get("submission_id")),
        state=str(record.get("status")),
        entrypoint=str(record.get("entrypoint")),
        started=seconds("start_time"),
        ended=seconds("end_time"),
        exit_code=record.get("driver_exit_code"),
        message=str(record.get("message") or ""),
        node=str(record.get("driver_node_id") or ""),
        about=about if isinstance(about, dict) else {},
    )


def _python() -> str:
    return platform.python_version()


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
