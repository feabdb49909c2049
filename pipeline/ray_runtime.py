"""Starting Ray: a private local instance bound to loopback, or an existing cluster by address.

Local Ray has no dashboard and no authentication because nothing outside this machine can reach it; clusters use tokens.
Takes about 4 s. The environment must be set before Ray starts, because its workers inherit it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from uvd.sequences.errors import UserError

LOCAL = "local"
_WORKER_ENVIRONMENT = {
    # One shard is one single-threaded task; parallelism comes from running many.
    "OMP_NUM_THREADS": "1",
    "OPENCV_OPENCL_RUNTIME": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
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
        RuntimeUnavailableError: if there is no cluster at `address`, or Ray does not start.
    """
    local = address == LOCAL
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if local else "token")
    variables = {**_WORKER_ENVIRONMENT, **(environment or {})}
    import ray

    if ray.is_initialized():
        yield
        return
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
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "start a local Ray" if local else f"reach a Ray cluster at {address!r}"
        raise RuntimeUnavailableError(f"could not {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
