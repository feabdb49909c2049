"""Reading many blocks: here, or in helper processes (`python -m uvd.manifests.block_reader`).

Opening a hundred thousand small files is bound by the interpreter, 0.15 ms each whatever the number of threads, so
large datasets are read in as many processes as there are cores. A helper is told its blocks as JSON on its standard
input, and answers with an Arrow stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from queue import SimpleQueue
from typing import IO, Any, cast

import duckdb
import pyarrow as pa

from uvd.manifests.blocks import BLOCKS, Block, pack, read_shard
from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.schema import METADATA_KEY
from uvd.sequences.object_stores import ObjectStoreError

OBJECT_STORE_THREADS = 16
"""Of each process: there, waiting is what takes the time."""
PROCESSES_FROM = 4096
"""Shards from which on helper processes pay for their start."""
MAX_PROCESSES = 8
_REFUSED = 3
"""Exit code of a helper whose standard error is a message for the user."""


def read_blocks(dataset: Dataset, blocks: list[Block], processes: int | None = None) -> Iterator[pa.RecordBatch]:
    """One row of `BLOCKS` for each block, in any order.

    Args:
        processes: one a core by default, none beside this one for few shards.

    Raises:
        DatasetError: names a file that is not a manifest of uvd.
    """
    shards = sum(len(block.numbers) for block in blocks)
    if processes is None:
        processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0))) if shards >= PROCESSES_FROM else 1
    processes = min(processes, len(blocks))
    if processes < 2:
        yield from _read_here(dataset, blocks)
    else:
        yield from _read_in_helpers(dataset, [blocks[number::processes] for number in range(processes)])


def _read_here(dataset: Dataset, blocks: Iterable[Block]) -> Iterator[pa.RecordBatch]:
    if dataset.storage.local_root is not None:
        with duckdb.connect(config={"threads": 1, "memory_limit": "500MB"}) as connection:
            for block in blocks:
                footers = _read_footers(connection, dataset, block)
                named = (Shard(block.folder, number) for number in block.numbers)
                yield pack(block, (read_shard(dataset, shard, footers.get(shard.manifest)) for shard in named))
        return
    with ThreadPoolExecutor(OBJECT_STORE_THREADS) as pool:
        for block in blocks:
            shards = [Shard(block.folder, number) for number in block.numbers]
            yield pack(block, pool.map(lambda shard: read_shard(dataset, shard), shards))


def _read_footers(connection: duckdb.DuckDBPyConnection, dataset: Dataset, block: Block) -> dict[str, bytes]:
    """Metadata of a block's manifests by their path in the dataset, in half the time that Arrow takes file by file.

    Empty if one of them is damaged: reading them one by one finds out which.
    """
    manifests = [Shard(block.folder, number).manifest for number in block.numbers]
    paths = [dataset.storage.full(manifest) for manifest in manifests]
    if any(character in path for path in paths[:1] for character in "*?["):
        return {}  # DuckDB would take it for a pattern
    try:
        found = connection.execute(
            "select file_name, value from parquet_kv_metadata($paths) where key = $key::blob",
            {"paths": paths, "key": METADATA_KEY},
        ).fetchall()
    except duckdb.Error:
        return {}
    names = dict(zip(paths, manifests, strict=True))
    return {names[path]: value for path, value in found}


def _read_in_helpers(dataset: Dataset, shares: list[list[Block]]) -> Iterator[pa.RecordBatch]:
    arrived: SimpleQueue[pa.RecordBatch | None] = SimpleQueue()
    helpers = [_Helper() for _ in shares]
    try:
        with ThreadPoolExecutor(len(shares)) as pool:
            for helper, share in zip(helpers, shares, strict=True):
                pool.submit(helper.work, dataset.address, share, arrived)
            working = len(helpers)
            while working:
                batch = arrived.get()
                if batch is None:
                    working -= 1
                    _raise_first(helpers)
                else:
                    yield batch
    finally:
        for helper in helpers:
            helper.stop()


def _raise_first(helpers: list[_Helper]) -> None:
    for helper in helpers:
        if helper.failure is not None:
            for other in helpers:
                other.stop()
            raise helper.failure


class _Helper:
    """One helper process."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        # -P: what lies in the working directory is not imported.
        command = [sys.executable, "-P", "-m", "uvd.manifests.block_reader"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def work(self, uri: str, blocks: list[Block], arrived: SimpleQueue[pa.RecordBatch | None]) -> None:
        """Hands over the blocks and puts what comes back into the queue; None is the last."""
        try:
            self._ask(uri, blocks)
            with pa.ipc.open_stream(self._process.stdout) as stream:
                for batch in stream:
                    arrived.put(batch)
        except (OSError, pa.ArrowException) as error:  # the stream is cut off where the helper ended
            self.failure = error
        finally:
            if self._process.wait():
                self.failure = self._explain()
            arrived.put(None)

    def _ask(self, uri: str, blocks: list[Block]) -> None:
        stdin = cast(IO[bytes], self._process.stdin)
        stdin.write(json.dumps({"uri": uri, "blocks": [asdict(block) for block in blocks]}).encode())
        stdin.close()

    def _explain(self) -> Exception:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        if self._process.returncode == _REFUSED:
            return DatasetError(said)
        return RuntimeError(f"a process that reads manifests ended with {self._process.returncode}: {said[-2000:]}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def _serve(task: dict[str, Any], out: IO[bytes]) -> None:
    dataset = Dataset(task["uri"])
    blocks = (Block(**{**block, "numbers": tuple(block["numbers"])}) for block in task["blocks"])
    with pa.ipc.new_stream(out, BLOCKS) as writer:
        for batch in _read_here(dataset, blocks):
            writer.write_batch(batch)
            out.flush()


def main() -> None:
    task = json.loads(sys.stdin.buffer.read())
    try:
        _serve(task, sys.stdout.buffer)
    except (DatasetError, ObjectStoreError) as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)


if __name__ == "__main__":
    main()
