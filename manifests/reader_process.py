"""Processes that read manifests: each is told its task as JSON on standard input, and answers with an Arrow stream.

Opening a hundred thousand small files is bound by the interpreter, whatever the number of threads, so large datasets
are read in as many processes as there are cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, cast

import pyarrow as pa

from uvd.manifests.dataset import DatasetError
from uvd.sequences.object_stores import ObjectStoreError

PROCESSES_FROM = 4096
"""Shards from which on such processes pay for their start."""
MAX_PROCESSES = 8
_REFUSED = 3
"""Exit code of a process whose standard error is a message for the user."""


def processes_for(shards: int) -> int:
    """How many processes should read so many manifests: one a core, or 1, which means none beside this one."""
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0))) if shards >= PROCESSES_FROM else 1


class ReaderProcess:
    """One process, started at once.

    Args:
        module: its `__main__` calls `serve`.
    """

    def __init__(self, module: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        # -P: what lies in the working directory is not imported.
        command = [sys.executable, "-P", "-m", module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def ask(self, task: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """Hands over the task, once; the answer comes as it is read.

        Raises:
            DatasetError: names a file that is not a manifest of uvd.
        """
        try:
            stdin = cast(IO[bytes], self._process.stdin)
            stdin.write(json.dumps(task).encode())
            stdin.close()
        except OSError as error:  # it has ended
            raise self._explain() from error
        return self._answer()

    def _answer(self) -> Iterator[pa.RecordBatch]:
        try:
            with pa.ipc.open_stream(self._process.stdout) as stream:
                yield from stream
        except (OSError, pa.ArrowException) as error:  # the stream is cut off where the process ended
            raise self._explain() from error
        if self._process.wait():
            raise self._explain()

    def _explain(self) -> Exception:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        if self._process.returncode == _REFUSED:
            return DatasetError(said)
        return RuntimeError(f"a process that reads manifests ended with {self._process.returncode}: {said[-2000:]}")

    def kill(self) -> None:
        """Ends it; whoever waits for its answer, in another thread, gets an error."""
        self._process.kill()

    def stop(self) -> None:
        """Ends it, and lets go of all that it has here."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # the rest of a task that nobody will read
                    stream.close()


def serve(schema: pa.Schema, answer: Callable[[dict[str, Any]], Iterator[pa.RecordBatch]]) -> None:
    """The main function of such a process: answers the one task."""
    task = json.loads(sys.stdin.buffer.read())
    out = sys.stdout.buffer
    try:
        with pa.ipc.new_stream(out, schema) as writer:
            for batch in answer(task):
                writer.write_batch(batch)
                out.flush()
    except (DatasetError, ObjectStoreError) as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)
