"""Sending a command to a cluster: its files packed, its versions checked, one job at a time for one command.

Ids are `uvd-TITLE-KEY-NUMBER`, where KEY stands for the command and NUMBER counts its jobs. Ray takes an id only once,
so of two who submit the same command at the same moment one is told of the other.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uvd.pipeline.jobs import environment
from uvd.pipeline.jobs.cluster import Cluster, Job
from uvd.pipeline.jobs.command import ClusterCommand, local_paths_message
from uvd.pipeline.jobs.entry import ABOUT
from uvd.pipeline.jobs.errors import JobError, JobRunningError, SubmissionError
from uvd.pipeline.jobs.package import Package, package_for_cluster

STOP_WAIT_S = 180
"""Between SIGTERM and SIGKILL: as long as the shards in work, or a checkpoint, may take."""
_POLL_S = 2.0
_RACES = 5
_PYTHON = re.compile(r"^[\w./~+-]+$")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a command is sent.

    Attributes:
        env: names of variables whose values the job gets.
        python: on the cluster.
        wait: for a job that runs the same command, rather than refuse.
    """

    env: tuple[str, ...] = ()
    python: str = "python"
    wait: bool = False


def submit(cluster: Cluster, command: ClusterCommand, options: Options, say: Say, *, shared_paths: bool = False) -> str:
    """Sends a command; returns the job's id.

    Args:
        shared_paths: every machine of the cluster sees local paths as this one does.

    Raises:
        SubmissionError: if it names what the cluster cannot see, or a variable that is not there.
        VersionSkewError: if Python or Ray are others there.
        JobRunningError: if the same command runs already and `options.wait` is off.
    """
    if not _PYTHON.match(options.python):
        raise SubmissionError(f"--python {options.python!r}: expected the name or path of a Python on the cluster")
    cluster.check_versions()
    if command.local and not shared_paths and not cluster.is_this_machine():
        raise SubmissionError(local_paths_message(command.local))
    variables = environment.read_variables(options.env)
    _free_of(cluster, command.key, options.wait, say)  # before anything is built
    with tempfile.TemporaryDirectory(prefix="uvd-job-") as scratch:
        package = package_for_cluster(Path(scratch) / "package")
        files = Path(scratch) / "files"
        _write_files(files, command, package, variables)
        runtime_env = {
            "working_dir": str(files),
            "py_modules": [str(package.folder)],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "RAY_AUTH_MODE": cluster.auth_mode},
        }
        if variables:
            runtime_env["worker_process_setup_hook"] = environment.HOOK
        about = _about(command, package, options)
        return _send(cluster, command, options, runtime_env, about, say)


def _write_files(folder: Path, command: ClusterCommand, package: Package, variables: dict[str, str]) -> None:
    folder.mkdir()
    about = {"version": package.version, "wheel": package.digest, "requirements": package.requirements}
    (folder / ABOUT).write_text(json.dumps(about))
    if command.config_name:
        (folder / command.config_name).write_text(command.config)
    environment.write_variables(variables, folder)


def _about(command: ClusterCommand, package: Package, options: Options) -> dict[str, Any]:
    return {
        "title": command.title,
        "arguments": list(command.arguments),
        "dataset": command.dataset,
        "key": command.key,
        "config_name": command.config_name,
        "config": command.config,
        "env": sorted(options.env),
        "python": options.python,
        "version": package.version,
        "wheel": package.digest,
    }


def _send(
    cluster: Cluster,
    command: ClusterCommand,
    options: Options,
    runtime_env: Mapping[str, Any],
    about: Mapping[str, Any],
    say: Say,
) -> str:
    # Without `exec` a shell would stand between Ray and the command, and signals and exit codes would be the shell's.
    entrypoint = f"exec {options.python} -m uvd.pipeline.jobs.entry {shlex.join(command.arguments)}"
    for _ in range(_RACES):
        number = 1 + _last_number(_free_of(cluster, command.key, options.wait, say))
        job_id = f"uvd-{command.title.replace(' ', '-')}-{command.key}-{number}"
        if cluster.submit(job_id, entrypoint, runtime_env, about):
            return job_id
    raise JobError("others submit this command again and again at the same time; nothing was submitted here")


def _free_of(cluster: Cluster, key: str, wait: bool, say: Say) -> list[Job]:
    """The jobs there were of this command, once none of them runs."""
    told = ""
    while True:
        same = [job for job in cluster.jobs() if job.about.get("key") == key]
        running = next((job for job in same if job.live), None)
        if running is None:
            return same
        if not wait:
            raise JobRunningError(
                f"this command runs already as {running.id} ({running.state.lower()}). Follow it by `uvd jobs logs "
                f"{running.id} --follow`, stop it by `uvd jobs stop {running.id}`, or wait for its end with --wait"
            )
        if told != running.id:
            told = running.id
            say(f"waiting for {running.id}, which runs the same command")
        time.sleep(_POLL_S)


def _last_number(jobs: Iterable[Job]) -> int:
    numbers = [job.id.rpartition("-")[2] for job in jobs]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def resume(cluster: Cluster, job: Job, options: Options, say: Say) -> str:
    """Sends the command of an earlier job again, with the config that it had and the uvd that is here.

    Args:
        options: `env` and `python` are the earlier job's.

    Raises:
        JobError: if the job was not submitted by uvd.
        Everything that `submit` raises.
    """
    about = job.about
    try:
        command = ClusterCommand(
            title=str(about["title"]),
            arguments=tuple(map(str, about["arguments"])),
            dataset=str(about["dataset"]),
            key=str(about["key"]),
            config_name=Path(str(about["config_name"])).name,
            config=str(about["config"]),
        )
        before = Options(tuple(map(str, about["env"])), str(about["python"]), options.wait)
    except (KeyError, TypeError) as error:
        raise JobError(f"{job.id} was not submitted by `uvd jobs submit`, so it cannot be resumed by it") from error
    # Its paths were judged when it was submitted first.
    return submit(cluster, command, before, say, shared_paths=True)


def stop(cluster: Cluster, job_id: str, *, wait: bool, say: Say) -> Job:
    """Ends a job cleanly: what is committed stays, and the same command goes on from there.

    Args:
        wait: until it has ended, which takes up to `STOP_WAIT_S` and some seconds.

    Raises:
        JobError: if there is none of this id, or if it does not end.
    """
    job = cluster.job(job_id)
    if job.over:
        say(f"{job.id} has ended already ({job.state.lower()})")
        return job
    cluster.stop(job.id)
    say(f"{job.id}: asked to stop; it ends its shards in work first, for up to {STOP_WAIT_S} s")
    deadline = time.monotonic() + STOP_WAIT_S + 60
    while wait and not job.over:
        if time.monotonic() > deadline:
            raise JobError(f"{job.id} did not end within {STOP_WAIT_S + 60} s; it is still {job.state.lower()}")
        time.sleep(min(_POLL_S, 0.5))
        job = cluster.job(job.id)
    return job
