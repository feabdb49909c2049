"""The packed loader beside plain webdataset: tokens a second, from local token shards to int64 in memory, by turns.

Three kinds of shards, all by the project's writer with its 1,000 sequences: one sequence of 16 images a record (4,098
tokens, as in the issue of webdataset's cost a record), four of them a record (the writer's own), and single images, 64
a record. webdataset decodes each record to a uint16 array and does nothing more: no shuffling, no rows, no int64. Ours
gives batches of 8 rows of 4,096 + 1 int64, shuffled, each id checked; a round of it is an epoch, with the reading
ahead of as many tokens, on one core. Speeds are by processor time, all threads together, so that other work on the
machine counts less, and by the clock too.

    python -m uvd.benchmarks.loader [--rounds 5] [--tokens 96]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np

from uvd.benchmarks.record import median, rounds_by_turns, write_result
from uvd.manifests import token_shard
from uvd.manifests.dataset import Dataset
from uvd.manifests.token_shard import TokenShardWriter
from uvd.trainer.packing import PackingName

CONTEXT = 4096
ROWS = 8
SEQUENCES = 1000
"""Of a shard: the default of all sources."""
BARS = {"tokens_per_s": 150e6, "times_webdataset": 15.0}
MEMORY_SIZES = (1, 2, 4, 8)
"""Of the datasets that memory is measured on, in 16 million tokens."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of shard: images of a sequence, and of a record."""

    images: int
    record: int


KINDS = {
    "4,098-token records": Kind(16, 16),
    "16 images, 4 a record": Kind(16, 64),
    "1 image, 64 a record": Kind(1, 64),
}
MAIN = "4,098-token records"


def write_shards(folder: Path, kind: Kind, tokens: int) -> str:
    """A dataset of about so many tokens, random codes."""
    dataset = Dataset(str(folder))
    dataset.declare("tokens", "made-up/random", {"fingerprint": "0"})
    rng = np.random.default_rng(0)
    shards = max(1, round(tokens / (SEQUENCES * (256 * kind.images + 2))))
    with patch.object(token_shard, "IMAGES_PER_RECORD", kind.record):
        for shard in range(shards):
            codes = rng.integers(0, 8192, (SEQUENCES, kind.images, 256), np.uint16)
            with TokenShardWriter(dataset, "made-up", "random", shard) as writer:
                for index in range(SEQUENCES):
                    row = {"key": f"random-{shard:06d}-{index:06d}", "source": "random", "dataset": "random"}
                    row |= {"layout": "frames", "split": "train"}
                    writer.add(row | {"num_images": kind.images, "roles": ["frame"] * kind.images}, codes[index])
                writer.commit(SEQUENCES, "0", {"tokenizer": "made-up", "tokenizer_fingerprint": "0"})
    return dataset.uri


class Timed:
    """Runs something that says how many tokens it gave; keeps the speed by the clock, returns that of the processor."""

    def __init__(self, run: Callable[[], int]) -> None:
        self._run = run
        self.by_clock: list[float] = []

    def __call__(self) -> float:
        """Million tokens a second of processor time."""
        clock, processor = time.perf_counter(), time.process_time()
        tokens = self._run()
        self.by_clock.append(tokens / (time.perf_counter() - clock) / 1e6)
        return tokens / (time.process_time() - processor) / 1e6


def by_webdataset(uri: str) -> int:
    """Decodes every record of every shard."""
    import webdataset as wds

    tars = sorted(str(path) for path in Path(uri).rglob("*.tar"))
    tokens = 0
    for record in wds.WebDataset(tars, shardshuffle=False).decode():
        tokens += len(record["tokens.npy"])
    return tokens


def by_ours(uri: str, packing: str = "concat") -> Callable[[], int]:
    """Reads an epoch, each call the next one; what is read ahead in it is waited for, and not left to the next turn."""
    from uvd.sequences import Seeds
    from uvd.trainer.data import PackedTokens, open_split

    data = PackedTokens(
        open_split(uri, "train").shards, context=CONTEXT, seeds=Seeds(0), packing=cast(PackingName, packing)
    )

    def epoch() -> int:
        read = 0
        while read < data.epoch_tokens:
            read += data.batch(ROWS).tokens[:, 1:].size
        data.wait()
        return read

    return epoch


def measure(folder: Path, tokens: int, rounds: int) -> tuple[dict[str, dict[str, list[float]]], dict[str, Any]]:
    """(million tokens a second of processor time by kind and way, the same by the clock)."""
    by_processor, by_clock = {}, {}
    for number, (name, kind) in enumerate(KINDS.items()):
        uri = write_shards(folder / str(number), kind, tokens)
        ways = {
            "uvd concat": Timed(by_ours(uri)),
            "uvd aligned": Timed(by_ours(uri, "aligned")),
            "webdataset": Timed(lambda uri=uri: by_webdataset(uri)),  # type: ignore[misc]
        }
        for way in ways.values():
            way()  # fills the page cache, imports
            way.by_clock.clear()
        print(f"{name}: {sum(path.stat().st_size for path in Path(uri).rglob('*.tar')) / 2**20:.0f} MiB of shards")
        by_processor[name] = rounds_by_turns(ways, rounds)
        by_clock[name] = {way: timed.by_clock for way, timed in ways.items()}
    return by_processor, by_clock


def opening(folder: Path, tokens: int) -> dict[str, float]:
    """What opening costs: milliseconds and bytes a shard, for single images."""
    from uvd.trainer.data import open_split

    uri = write_shards(folder / "opening", KINDS["1 image, 64 a record"], tokens)
    open_split(uri, "train")
    start = time.process_time()
    parts = open_split(uri, "train").shards
    seconds = time.process_time() - start
    arrays = (parts.folder, parts.shard, parts.first, parts.stop, parts.tokens)
    return {
        "shards": len(parts),
        "ms_per_shard": 1000 * seconds / len(parts),
        "bytes_per_part": sum(array.nbytes for array in arrays) / len(parts),
    }


def peak_mib(uri: str, buffer_tokens: int) -> float:
    """Growth of resident memory, in MiB, over an epoch with this buffer."""
    from uvd.sequences import Seeds
    from uvd.trainer.data import PackedTokens, open_split

    before = _high_water()
    data = PackedTokens(open_split(uri, "train").shards, context=CONTEXT, seeds=Seeds(0), buffer_tokens=buffer_tokens)
    while data.state()["epoch"] == 0:
        data.batch(ROWS)
    return _high_water() - before


def _high_water() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure_memory(folder: Path) -> dict[str, float]:
    """Peak memory by size of the dataset, at a buffer of 8 million tokens, each in a process of its own."""
    peaks = {}
    for size in MEMORY_SIZES:
        uri = write_shards(folder / f"memory{size}", KINDS[MAIN], size * 16_000_000)
        command = [sys.executable, "-m", "uvd.benchmarks.loader", "--memory", uri]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[f"{16 * size}M tokens"] = float(said)
        print(f"memory, {16 * size} M tokens: {float(said):.0f} MiB", flush=True)
    return peaks


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="millions, of each kind of shard")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/loader.json")
    parser.add_argument("--memory", default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.memory is not None:
        print(peak_mib(arguments.memory, 8_000_000))
        return
    with tempfile.TemporaryDirectory() as name:
        by_processor, by_clock = measure(Path(name), arguments.tokens * 1_000_000, arguments.rounds)
        opened = opening(Path(name), 10_000_000)
        memory = measure_memory(Path(name))
    report(arguments, by_processor, by_clock, opened, memory)


def report(
    arguments: argparse.Namespace,
    by_processor: Mapping[str, Mapping[str, list[float]]],
    by_clock: Mapping[str, Any],
    opened: Mapping[str, float],
    memory: Mapping[str, float],
) -> None:
    medians = {kind: {way: median(values) for way, values in ways.items()} for kind, ways in by_processor.items()}
    ratios = {kind: ways["uvd concat"] / ways["webdataset"] for kind, ways in medians.items()}
    reached = {"tokens_per_s": medians[MAIN]["uvd concat"] * 1e6, "times_webdataset": ratios[MAIN]}
    content = {
        "rounds": arguments.rounds,
        "million_tokens": arguments.tokens,
        "context": CONTEXT,
        "rows": ROWS,
        "million_tokens_per_processor_s": by_processor,
        "million_tokens_per_s_by_the_clock": by_clock,
        "median_million_tokens_per_processor_s": medians,
        "times_webdataset": ratios,
        "opening": opened,
        "peak_mib_at_a_buffer_of_8M_tokens": memory,
        "reached": reached,
        "bars": {name: {"bar": bar, "met": reached[name] >= bar} for name, bar in BARS.items()},
    }
    path = write_result("loader", content, arguments.out)
    print(f"{'million tokens/s':24}" + "".join(f"{way:>14}" for way in medians[MAIN]) + f"{'times':>8}")
    for kind, ways in medians.items():
        print(f"{kind:24}" + "".join(f"{value:14.1f}" for value in ways.values()) + f"{ratios[kind]:8.1f}")
    print(f"opening: {opened['ms_per_shard']:.2f} ms and {opened['bytes_per_part']:.0f} bytes a shard")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
