"""Reading many blocks: here, or in processes (`python -m uvd.manifests.block_reader`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from uvd.manifests.blocks import BLOCKS, Block, BlockContent, pack, read_shard
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.footer import read_footer
from uvd.manifests.reader_process import ReaderProcess, processes_for, serve

_MODULE = "uvd.manifests.block_reader"
OBJECT_STORE_THREADS = 16
"""Of each process: there, waiting is what takes the time."""


def read_blocks(dataset: Dataset, blocks: list[Block], processes: int | None = None) -> Iterator[pa.RecordBatch]:
    """One row of `BLOCKS` for each block, in any order.

    Args:
        processes: one a core by default, none beside this one for few shards.

    Raises:
        DatasetError: names a file that is not a manifest of uvd.
    """
    processes = min(processes or processes_for(sum(len(block.numbers) for block in blocks)), len(blocks))
    if processes < 2:
        yield from _read_here(dataset, blocks)
    else:
        yield from _read_in_processes(dataset, [blocks[number::processes] for number in range(processes)])


def _read_here(dataset: Dataset, blocks: Iterable[Block]) -> Iterator[pa.RecordBatch]:
    if dataset.storage.local_root is not None:
        for block in blocks:
            yield pack(block, (_read_local(dataset, Shard(block.folder, number)) for number in block.numbers))
        return
    with ThreadPoolExecutor(OBJECT_STORE_THREADS) as pool:
        for block in blocks:
            shards = [Shard(block.folder, number) for number in block.numbers]
            yield pack(block, pool.map(lambda shard: read_shard(dataset, shard), shards))


def _read_local(dataset: Dataset, shard: Shard) -> BlockContent:
    try:
        metadata = read_footer(dataset.storage.full(shard.manifest))
    except OSError:
        metadata = None  # read_shard meets it again, and says which file it is
    return read_shard(dataset, shard, metadata)


def _read_in_processes(dataset: Dataset, shares: list[list[Block]]) -> Iterator[pa.RecordBatch]:
    arrived: SimpleQueue[pa.RecordBatch | Exception | None] = SimpleQueue()
    readers: list[ReaderProcess] = []
    try:
        with ThreadPoolExecutor(len(shares)) as pool:
            try:
                for share in shares:
                    readers.append(ReaderProcess(_MODULE))
                    task = {"uri": dataset.address, "blocks": [_plain(block) for block in share]}
                    pool.submit(_forward, readers[-1], task, arrived)
                working = len(readers)
                while working:
                    batch = arrived.get()
                    if isinstance(batch, Exception):
                        raise batch
                    if batch is None:
                        working -= 1
                    else:
                        yield batch
            finally:
                for reader in readers:  # or else the pool would wait for them
                    reader.kill()
    finally:
        for reader in readers:
            reader.stop()


def _forward(
    reader: ReaderProcess, task: dict[str, Any], arrived: SimpleQueue[pa.RecordBatch | Exception | None]
) -> None:
    """Puts what a process answers into the queue; None, or an exception, is the last."""
    try:
        for batch in reader.ask(task):
            arrived.put(batch)
    except Exception as error:  # noqa: BLE001 - raised where the queue is read
        arrived.put(error)
    else:
        arrived.put(None)


def _plain(block: Block) -> dict[str, Any]:
    return {field.name: getattr(block, field.name) for field in fields(block)}  # asdict would copy each number


def _answer(task: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    blocks = (Block(**{**block, "numbers": tuple(block["numbers"])}) for block in task["blocks"])
    return _read_here(Dataset(task["uri"]), blocks)


if __name__ == "__main__":
    serve(BLOCKS, _answer)
