"""Commands about jobs on a Ray cluster: `uvd jobs submit`, `list`, `logs`, `stop`, `resume`, `top`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from uvd.pipeline.config import ConfigError

if TYPE_CHECKING:
    from uvd.pipeline.jobs.cluster import Cluster

DETACHED = 130
_PIPE_WIDTH = 200
AddressOption = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the cluster's head, such as http://HEAD:8265."),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a job; `uvd jobs list` shows them.")]
FollowOption = Annotated[bool, typer.Option("--follow/--no-follow", help="Show the log until the job ends.")]
WaitForSameOption = Annotated[bool, typer.Option("--wait", help="Wait for a job that runs the same command.")]
FormatOption = Annotated[str, typer.Option("--format", help="table or json.")]

jobs_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Run commands on a Ray cluster: the same as here, sent as jobs.

    Examples:

        export RAY_API_SERVER_ADDRESS=http://head:8265 RAY_AUTH_TOKEN_PATH=~/.ray/auth_token

        uvd jobs submit -- ingest laion --config my-laion.yaml --set input=s3://bucket/laion --out s3://bucket/uvd

        uvd jobs list

        uvd jobs stop ID && uvd jobs resume ID

    `make submit-laion ADDRESS=… INPUT=… DATASET=… CONFIG=…` does the same. The cluster's image brings Python, Ray and
    the dependencies (cluster/Containerfile); uvd itself comes with each job, as a wheel of this working tree.
    """,
)


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="As after `uvd`; no --address in it.")],
    address: AddressOption,
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME", help="Variable that the job gets, repeatable.")
    ] = None,
    shared_paths: Annotated[
        bool, typer.Option("--shared-paths", help="All machines of the cluster see local paths as this one does.")
    ] = False,
    python: Annotated[str, typer.Option(help="Python on the cluster.")] = "python",
    follow: FollowOption = True,
    wait: WaitForSameOption = False,
) -> None:
    """Send a command to a cluster and follow it; the exit code is the command's.

    Examples:

        uvd jobs submit --address http://head:8265 -- tokenize --dataset s3://bucket/uvd --device cuda

        uvd jobs submit --address http://head:8265 --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY --no-follow -- \\
            ingest video --config configs/video.yaml --set input=s3://bucket/clips --out s3://bucket/uvd

    The config travels with the job; everything else must be where the cluster sees it. Ctrl-C stops the following, not
    the job. The same command goes on with what was stopped or failed; while it runs, it is refused a second time.
    """
    from uvd.pipeline.jobs.command import parse_command
    from uvd.pipeline.jobs.submitting import Options
    from uvd.pipeline.jobs.submitting import submit as send

    parsed = parse_command(command)
    cluster = _connect(address)
    options = Options(tuple(env or ()), python, wait)
    job_id = send(cluster, parsed, options, _say, shared_paths=shared_paths)
    _submitted(cluster, job_id, parsed.text, follow)


def resume(
    job_id: IdArgument,
    address: AddressOption,
    follow: FollowOption = True,
    wait: WaitForSameOption = False,
) -> None:
    """Send the command of a stopped or failed job again, with the config it had and the uvd that is here.

    Variables that it was given by --env are taken from this environment again.

    Example:

        uvd jobs resume uvd-ingest-laion-3f2a9c1e-1 --address http://head:8265
    """
    from uvd.pipeline.jobs.submitting import Options
    from uvd.pipeline.jobs.submitting import resume as send

    cluster = _connect(address)
    job = cluster.job(job_id)
    if job.state == "SUCCEEDED":
        _say(f"{job.id} succeeded; there is nothing to resume")
        return
    again = send(cluster, job, Options(wait=wait), _say)
    _submitted(cluster, again, "uvd " + " ".join(job.about["arguments"]), follow)


def logs(
    job_id: IdArgument,
    address: AddressOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed; with --follow, until it ends, with its exit code.

    Example:

        uvd jobs logs uvd-ingest-laion-3f2a9c1e-1 --follow --address http://head:8265
    """
    cluster = _connect(address)
    if follow:
        _follow(cluster, cluster.job(job_id).id)
    _write(cluster.log(cluster.job(job_id).id))


def stop(
    job_id: IdArgument,
    address: AddressOption,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has ended.")] = True,
) -> None:
    """End a job cleanly: what is committed is kept, and `uvd jobs resume` goes on from there.

    Example:

        uvd jobs stop uvd-ingest-laion-3f2a9c1e-1 --address http://head:8265
    """
    from uvd.pipeline.jobs.submitting import stop as end

    job = end(_connect(address), job_id, wait=wait, say=_say)
    _say(f"{job.id} is {job.state.lower()}")


def list_jobs(
    address: AddressOption,
    all_jobs: Annotated[bool, typer.Option("--all", help="Those of other programs too.")] = False,
    output: FormatOption = "table",
) -> None:
    """List the cluster's jobs, the newest first.

    Example:

        uvd jobs list --format json --address http://head:8265
    """
    from uvd.pipeline.jobs.listing import job_record, jobs_table

    if output not in ("table", "json"):
        raise ConfigError(f"--format {output}: expected table or json")
    jobs = [job for job in _connect(address).jobs() if all_jobs or job.about]
    if output == "json":
        print(json.dumps([job_record(job) for job in jobs], indent=2))
    elif jobs:
        _console().print(jobs_table(jobs))
    else:
        _say("no jobs")


def top(
    address: AddressOption,
    once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
) -> None:
    """Watch the cluster: jobs and their progress, machines and what they are busy with, what is waited for.

    Example:

        uvd jobs top --address http://head:8265
    """
    from uvd.pipeline.jobs.top import render, take_snapshot, watch

    cluster = _connect(address)
    if once or not sys.stdout.isatty():
        _console().print(render(take_snapshot(cluster)))
        return
    try:
        watch(cluster)
    except KeyboardInterrupt:
        return


def _connect(address: str) -> Cluster:
    from uvd.pipeline.jobs.cluster import connect

    return connect(address)


def _submitted(cluster: Cluster, job_id: str, text: str, follow: bool) -> None:
    _say(f"submitted as {job_id}: {text}")
    if follow:
        _follow(cluster, job_id)
    print(job_id)


def _follow(cluster: Cluster, job_id: str) -> None:
    """Ends the process: with the command's exit code, or with 130 if the user stopped following."""
    from uvd.pipeline.jobs.following import exit_code, outcome
    from uvd.pipeline.jobs.following import follow as read

    try:
        job = read(cluster, job_id, _write)
    except KeyboardInterrupt:
        _say(
            f"\nno longer following; the job goes on. `uvd jobs logs {job_id} --follow` follows it again, "
            f"`uvd jobs stop {job_id}` ends it",
        )
        raise typer.Exit(DETACHED) from None
    code = exit_code(job)
    _say(outcome(job), "green" if code == 0 else "red")
    raise typer.Exit(code)


def _console() -> Console:
    """Standard output; wide where it is no terminal, so that ids and paths stay whole."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(line: str, style: str = "yellow") -> None:
    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    jobs_app.command()(submit)
    jobs_app.command()(resume)
    jobs_app.command()(logs)
    jobs_app.command()(stop)
    jobs_app.command("list")(list_jobs)
    jobs_app.command()(top)
    app.add_typer(jobs_app, name="jobs")
