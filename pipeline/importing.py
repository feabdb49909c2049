"""Importing: files of LVM's JSON lines → token shards, one Ray task a range of bytes.

A shard holds the lines that begin in its range. They come out in their order, each as a sequence or as a reject with
its file and first byte, so that lines = sequences + rejects.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uvd import __version__
from uvd.manifests.dataset import Dataset, DatasetError
from uvd.manifests.export import read_about
from uvd.manifests.fingerprint import fingerprint
from uvd.manifests.lvm_jsonl import MAX_LINE_BYTES, decode_line, iter_lines
from uvd.manifests.token_shard import TokenShardWriter
from uvd.pipeline.executors import TaskExecutor
from uvd.pipeline.progress import ShardReport
from uvd.pipeline.ray_runtime import LOCAL
from uvd.pipeline.stage import Stage, StageResult, find_missing, run_stage
from uvd.pipeline.writing import writing
from uvd.sequences.reject import Reason, RejectedInput
from uvd.sequences.seeds import split_of

SUFFIX = ".jsonl"
RANGE_BYTES = 32 << 20
"""Of a file, a shard: 1,500 sequences of 16 images, 12 MiB of tokens."""
UNKNOWN = "unknown"
LAYOUT = "imported"
ROLE = "image"


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """How lines become sequences.

    Attributes:
        name: folder below `tokens/TOKENIZER/`, and the first part of keys.
        dataset: name of the raw data, as manifests show it.
        tokenizer: name of the tokenizer whose codes these are.
        tokenizer_fingerprint: of it, as `uvd tokenizer info` prints it; `unknown` if nobody knows.
        holdout: shares of `val` and `test`, by hash of a line's codes, so that equal lines are on one side.
        range_bytes: of a file, a shard.
    """

    name: str
    dataset: str
    tokenizer: str = UNKNOWN
    tokenizer_fingerprint: str = UNKNOWN
    holdout: tuple[tuple[str, float], ...] = ()
    range_bytes: int = RANGE_BYTES


@dataclass(frozen=True, slots=True)
class ImportJob:
    """Everything a worker needs to make one token shard from the lines that begin in [start, end) of a file."""

    uri: str
    settings: ImportSettings
    path: str
    origin: str
    start: int
    end: int
    shard: int
    fingerprint: str
    config_fingerprint: str


def import_lvm_jsonl(
    dataset: Dataset,
    inputs: Sequence[Path],
    settings: ImportSettings,
    *,
    address: str = LOCAL,
    num_cpus: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> StageResult:
    """Makes token shards of all lines, or what is missing of them.

    Args:
        inputs: `.jsonl` files, or folders whose `.jsonl` files are taken by name.

    Raises:
        DatasetError: if there are no such files, or the dataset has tokens of another tokenizer of that name.
        ConfigChangedError: if these tokens were imported with other settings or from other files.
    """
    files = _files(inputs)
    settings = _with_known_tokenizer(settings, inputs)
    _check_tokenizer(dataset, settings)
    entry: dict[str, Any] = {
        "imported": "lvm-jsonl",
        "tokenizer": settings.tokenizer,
        "tokenizer_fingerprint": settings.tokenizer_fingerprint,
        "config": asdict(settings),
        "uvd_version": __version__,
    }
    entry["fingerprint"] = fingerprint(entry)
    section = f"{settings.tokenizer}/{settings.name}"
    folder, console = f"tokens/{section}", console or Console(stderr=True)
    with writing(dataset, [folder], console) as lease:
        dataset.declare("tokens", section, entry, overwrite=overwrite)
        jobs = _plan(dataset, files, settings, entry["fingerprint"])
        missing = find_missing(dataset, folder, jobs, overwrite=overwrite)
        stage: Stage[ImportJob] = Stage(
            "import", folder, "sequences", lambda: TaskExecutor(import_range), address, num_cpus, lease=lease
        )
        return run_stage(dataset, stage, missing, console)


def _files(inputs: Sequence[Path]) -> list[tuple[str, Path]]:
    """(origin, path) of all files, in the order of the inputs; origins are relative to their input."""
    found: list[tuple[str, Path]] = []
    for place in inputs:
        place = place.expanduser().absolute()
        if place.is_dir():
            names = sorted(path.relative_to(place) for path in place.rglob(f"*{SUFFIX}") if path.is_file())
            # Hidden folders are what a running export has not finished.
            names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
            found += [(name.as_posix(), place / name) for name in names]
        elif place.is_file():
            found.append((place.name, place))
        else:
            raise DatasetError(f"no file or folder {place}")
    if not found:
        raise DatasetError(f"no {SUFFIX} files in {', '.join(map(str, inputs))}")
    twice = [origin for origin, times in Counter(origin for origin, _ in found).items() if times > 1]
    if twice:
        raise DatasetError(f"two input files are called {twice[0]}: rejects could not say which; import them apart")
    return found


def _with_known_tokenizer(settings: ImportSettings, inputs: Sequence[Path]) -> ImportSettings:
    """The settings, with the tokenizer that `export.json` beside the files names if none was given."""
    if settings.tokenizer != UNKNOWN or settings.tokenizer_fingerprint != UNKNOWN or len(inputs) != 1:
        return settings
    place = inputs[0].expanduser()
    about = read_about(place if place.is_dir() else place.parent)
    named = {name: about.get(name, UNKNOWN) for name in ("tokenizer", "tokenizer_fingerprint")}
    if not all(isinstance(value, str) for value in named.values()):
        raise DatasetError(f"export.json in {place} names no tokenizer: give --tokenizer")
    return ImportSettings(**{**asdict(settings), **named, "holdout": settings.holdout})


def _check_tokenizer(dataset: Dataset, settings: ImportSettings) -> None:
    """
    Raises:
        DatasetError: if others' tokens are in the folder of this tokenizer: they could not be trained on together.
    """
    for name, entry in dataset.info()["tokens"].items():
        tokenizer, _, source = name.partition("/")
        there = entry.get("tokenizer_fingerprint")
        if tokenizer == settings.tokenizer and source != settings.name and there != settings.tokenizer_fingerprint:
            raise DatasetError(
                f"{dataset.uri} has tokens of another tokenizer {tokenizer} (fingerprint {there}): give the same "
                "--fingerprint if these are of the same, or another --tokenizer name"
            )


def _plan(
    dataset: Dataset, files: Sequence[tuple[str, Path]], settings: ImportSettings, config_fingerprint: str
) -> list[ImportJob]:
    jobs: list[ImportJob] = []
    for origin, path in files:
        size = path.stat().st_size
        for start in range(0, size, settings.range_bytes):
            end = min(start + settings.range_bytes, size)
            made_of = fingerprint([config_fingerprint, origin, size, start, end])
            job = (dataset.address, settings, str(path), origin, start, end, len(jobs), made_of, config_fingerprint)
            jobs.append(ImportJob(*job))
    return jobs


def import_range(job: ImportJob) -> ShardReport:
    """Makes one token shard."""
    begun = time.perf_counter()
    settings, reasons = job.settings, Counter[str]()
    lines = 0
    with (
        TokenShardWriter(Dataset(job.uri), settings.tokenizer, settings.name, job.shard) as writer,
        open(job.path, "rb") as file,
    ):
        for index, (place, line) in enumerate(iter_lines(file, job.start, job.end)):
            lines += 1
            try:
                if line is None:
                    raise RejectedInput(Reason.TOO_LARGE, f"a line of more than {MAX_LINE_BYTES} bytes")
                codes = decode_line(line)
                writer.add(_row(job, index, codes), codes)
            except RejectedInput as rejected:
                reasons[str(rejected.reason)] += 1
                writer.reject(index, f"{job.origin}:{place}", rejected.reason, rejected.detail)
        provenance = {
            "imported": "lvm-jsonl",
            "tokenizer": settings.tokenizer,
            "tokenizer_fingerprint": settings.tokenizer_fingerprint,
            "config_fingerprint": job.config_fingerprint,
        }
        counts = writer.commit(lines, job.fingerprint, provenance)
    return ShardReport(
        shard=job.shard,
        counts={"inputs": lines}
        | {name: getattr(counts, name) for name in ("sequences", "rejected", "images", "tokens", "bytes")},
        reasons=dict(reasons),
        seconds={"total": time.perf_counter() - begun},
        host=socket.gethostname(),
    )


def _row(job: ImportJob, index: int, codes: NDArray[np.uint16]) -> dict[str, Any]:
    """What a manifest says of a line, of which nothing but its codes is known."""
    settings = job.settings
    identity = blake2b(codes.astype("<u2").tobytes(), digest_size=16).hexdigest()
    return {
        "key": f"{settings.name}-{job.shard:06d}-{index:06d}",
        "source": "lvm-jsonl",
        "dataset": settings.dataset,
        "layout": LAYOUT,
        "split": split_of(identity, dict(settings.holdout)),
        "num_images": len(codes),
        "roles": [ROLE] * len(codes),
    }
