"""A job that fills the object store of every node and keeps it full: `python -m uvd.benchmarks.chaos.hog ADDRESS`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from uvd.benchmarks.chaos.cluster import OBJECT_STORE_BYTES, Cluster, end_with_parent

BLOCK_BYTES = 8 << 20
_FULL = b"full"


@contextmanager
def filled_store(cluster: Cluster) -> Iterator[None]:
    """The object stores are full for the time of the block."""
    command = [sys.executable, "-m", "uvd.benchmarks.chaos.hog", cluster.address]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **cluster.environment}, preexec_fn=end_with_parent
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != _FULL:
            raise RuntimeError("the object stores could not be filled")
        yield
    finally:
        process.kill()
        process.communicate(timeout=30)


def main(address: str) -> None:
    import numpy as np
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address, log_to_driver=False)

    class Hog:
        def fill(self, blocks: int) -> int:
            self.kept = [ray.put(np.full(BLOCK_BYTES, number, np.uint8)) for number in range(blocks)]
            # What is read is pinned: it cannot be spilled to make room.
            self.pinned = ray.get(self.kept[: blocks * 3 // 4])
            return len(self.kept)

    blocks = OBJECT_STORE_BYTES // BLOCK_BYTES
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    hogs = [
        ray.remote(num_cpus=0)(Hog)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in nodes
    ]
    ray.get([hog.fill.remote(blocks) for hog in hogs], timeout=60)
    print(_FULL.decode(), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
