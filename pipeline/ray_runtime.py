"""Starting Ray: a private local instance, or an existing cluster by address.

Ray's processes listen on all of a machine's addresses, those of a local instance too, and run whatever a client sends:
so both ask for a token. A local one is made up for each process and is never written down. Without dashboard and the
metrics of its workers, a local Ray takes about 4 s to start; counters of Ray's own monitor stay readable by anybody.
The environment must be set before, because its workers inherit it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from uvd import __version__
from uvd.sequences.errors import UserError

LOCAL = "local"
_VERSION_S = 120
"""For the first worker of a cluster to start, on a node that an autoscaler may have to bring."""
_WORKER_ENVIRONMENT = {
    # One shard is one single-threaded task; parallelism comes from running many.
    "OMP_NUM_THREADS": "1",
    "OPENCV_OPENCL_RUNTIME": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_LOCAL_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",  # the agents' port asks for no token
}
OBJECT_STORE_BYTES = 256 << 20
"""Local object store: tasks exchange reports of a few hundred bytes, so it can be small."""


class RuntimeUnavailableError(UserError):
    """Ray could not be started or reached; the message says how to go on."""


@contextmanager
def ray_runtime(
    address: str = LOCAL, num_cpus: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Runs the block with Ray initialised, and shuts it down after; within another such block, that one's Ray serves.

    Args:
        address: `local` for a private instance, `auto` or `host:port` or `ray://…` for a cluster.
        num_cpus: CPUs of a private instance; by default all that this process may use.
        environment: variables that workers must have before they start Python.

    Raises:
        RuntimeUnavailableError: if there is no cluster at `address`, it does not accept the token, it runs other
            versions of Python, Ray or uvd, or Ray does not start.
    """
    local = address == LOCAL
    variables = {**_WORKER_ENVIRONMENT, **(_LOCAL_ENVIRONMENT if local else {}), **(environment or {})}
    import ray

    if ray.is_initialized():
        yield
        return
    _ask_for_tokens(local)
    added = [name for name in _LOCAL_ENVIRONMENT if local and name not in os.environ]
    try:
        if local:
            # Inherited by the raylet and its workers: cheaper than a runtime environment.
            for name, value in variables.items():
                os.environ.setdefault(name, value)
            ray.init(
                address="local",
                num_cpus=num_cpus or len(os.sched_getaffinity(0)),
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        else:
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = "start a local Ray" if local else f"use the Ray cluster at {address!r}"
        raise RuntimeUnavailableError(f"could not {where}: {error}{'' if local else _advice(str(error))}") from error
    try:
        if not local:
            _check_version(address)
        yield
    finally:
        ray.shutdown()
        for name in added:  # not for what this process starts next
            os.environ.pop(name, None)


def _ask_for_tokens(local: bool) -> None:
    """Turns token authentication on, unless the user has said otherwise."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if local and not any(os.environ.get(name) for name in _TOKENS):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray has read both when it was imported, which may have been before.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _advice(error: str) -> str:
    """What to do about a cluster that was not reached."""
    text = error.lower()
    if "token" in text or "auth" in text:
        return (
            "\nGive the cluster's token: RAY_AUTH_TOKEN, or a file that RAY_AUTH_TOKEN_PATH names (by default "
            "~/.ray/auth_token). RAY_AUTH_MODE=disabled is for clusters without."
        )
    if "version" in text:
        return "\nRun the same versions here as on the cluster, or submit a job to it: `uvd jobs submit --help`."
    return "\nThe address is HOST:PORT of the head (6379 by default), or `auto` on one of the cluster's nodes."


def _check_version(address: str) -> None:
    """
    Raises:
        RuntimeUnavailableError: if the cluster's workers have another uvd than this process, or none.
    """
    import ray

    def version() -> str:  # sent by value: it must run where there is no uvd
        try:
            from uvd import __version__
        except ImportError:
            return ""
        return str(__version__)

    there = ray.get(ray.remote(num_cpus=0)(version).remote(), timeout=_VERSION_S)
    if there != __version__:
        raise RuntimeUnavailableError(
            f"the cluster at {address!r} has {f'uvd {there}' if there else 'no uvd'}, and this is uvd {__version__}: "
            "shards of both in one dataset would not be the same. Install this one there, or submit a job, which "
            "brings its own: `uvd jobs submit --help`."
        )
