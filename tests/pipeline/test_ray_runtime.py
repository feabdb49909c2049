"""Starting Ray and reaching a cluster: a local one that nobody else can use, and errors that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from uvd.pipeline import ray_runtime as module
from uvd.pipeline.ray_runtime import RuntimeUnavailableError, ray_runtime

CLIENT = """
import sys, logging, ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
    print("in")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def local() -> Iterator[str]:
    with ray_runtime(num_cpus=1):
        yield ray.get_runtime_context().gcs_address


def connect(address: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-P", "-c", CLIENT, address]
    return subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=120, check=False
    ).stdout.strip()


def test_a_local_ray_lets_nobody_in_without_its_token(local: str) -> None:
    assert "in" not in connect(local, RAY_AUTH_MODE="disabled").split()


def test_within_a_block_its_ray_serves(local: str) -> None:
    with ray_runtime("nowhere:1"):
        assert ray.get_runtime_context().gcs_address == local
    assert ray.is_initialized()


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("Failed to connect to GCS at 10.0.0.1:6379", "HOST:PORT"),
        ("WrongClusterToken: Unauthenticated: InvalidAuthToken", "RAY_AUTH_TOKEN"),
        ("Version mismatch: The cluster was started with Ray 2.59.0", "same versions"),
    ],
)
def test_advice_fits_the_error(error: str, advice: str) -> None:
    assert advice in module._advice(error)


def test_another_uvd_on_the_cluster_is_refused(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__version__", "9.9.9")
    with pytest.raises(RuntimeUnavailableError, match=r"has uvd 0\.1\.0, and this is uvd 9\.9\.9"):
        module._check_version("head:6379")
