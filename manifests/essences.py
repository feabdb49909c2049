"""What a resume needs of each committed manifest: its fingerprint and counts, read here or in several processes.

The processes are `python -m uvd.manifests.essences`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uvd.manifests.dataset import Dataset, DatasetError, Shard
from uvd.manifests.reader_process import ReaderProcess, processes_for, serve
from uvd.manifests.schema import ManifestError
from uvd.sequences.object_stores import ObjectStoreError

COUNTED = ("inputs", "used", "rejected", "partial", "sequences", "images", "tokens")
"""Counts in the metadata of manifests; not all kinds have all of them."""
ESSENCES = pa.schema(
    [
        pa.field("number", pa.int64(), False),  # of the shard
        pa.field("fingerprint", pa.string(), False),
        *(pa.field(name, pa.int64()) for name in COUNTED),
    ]
)
BATCH = 2048
OBJECT_STORE_THREADS = 64
"""Of each process. A manifest takes two requests there, of 20 to 50 ms each: two processes read some 1,500 a second."""
_MODULE = "uvd.manifests.essences"


def read_essences(
    dataset: Dataset, folder: str, numbers: NDArray[np.int64], processes: int | None = None, size: int = BATCH
) -> Generator[pa.RecordBatch]:
    """Rows of `ESSENCES` for the manifests of a folder, in the order of `numbers`.

    Args:
        numbers: `(shards,)` int64.
        processes: one a core by default, none beside this one for few shards.
        size: rows of a batch.

    Raises:
        DatasetError: names a file that is not a manifest of uvd.
    """
    processes = processes or processes_for(len(numbers))
    if processes < 2:
        yield from _read_here(dataset, folder, numbers, size)
        return
    starts = np.arange(0, len(numbers), size)
    readers: list[ReaderProcess] = []
    try:
        readers.extend(ReaderProcess(_MODULE) for _ in range(processes))
        answers = []
        for place, reader in enumerate(readers):
            share = [numbers[start : start + size] for start in starts[place::processes]]
            mine = np.concatenate(share).tolist() if share else []
            answers.append(reader.ask({"uri": dataset.address, "folder": folder, "numbers": mine, "size": size}))
        # By turns, so that the order is kept; each works on its next batch meanwhile, and waits until that is taken.
        for _, answer in zip(starts, cycle(answers), strict=False):
            yield next(answer)
    finally:
        for reader in readers:
            reader.stop()


def _read_here(dataset: Dataset, folder: str, numbers: NDArray[np.int64], size: int) -> Iterator[pa.RecordBatch]:
    def essence(number: int) -> list[Any]:
        return read_essence(dataset, Shard(folder, number))

    with ThreadPoolExecutor(OBJECT_STORE_THREADS) as pool:
        read = map if dataset.storage.local_root is not None else pool.map
        for start in range(0, len(numbers), size):
            columns = zip(*read(essence, numbers[start : start + size].tolist()), strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, ESSENCES, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=ESSENCES)


def read_essence(dataset: Dataset, shard: Shard) -> list[Any]:
    """A row of `ESSENCES`.

    Raises:
        DatasetError: if there is no manifest of uvd.
    """
    try:
        metadata = dataset.metadata(shard)
        counts = [metadata.get(name) for name in COUNTED]
        row = [shard.number, metadata["fingerprint"], *counts]
        if not isinstance(row[1], str) or not all(count is None or _is_count(count) for count in counts):
            raise ManifestError("its fingerprint is no text, or a count is none")
    except ObjectStoreError:
        raise  # which says nothing of the manifest
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{shard.manifest} is not a manifest of uvd, or damaged ({type(error).__name__}: {error}). `uvd verify` "
            "names all such files; delete them, and this command makes their shards anew."
        ) from error
    return row


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _answer(task: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    return _read_here(Dataset(task["uri"]), task["folder"], np.array(task["numbers"], np.int64), task["size"])


if __name__ == "__main__":
    serve(ESSENCES, _answer)
