"""Verification: does the dataset hold what its manifests say, and nothing else?

Shallow: every manifest has its tar and rejects, sizes and counts agree, nothing is orphaned, missing or mixed. Deep:
sha256 of every tar, every member, picture and token sequence. Nothing is written. `uvd verify` spreads the same checks
over Ray (`pipeline/verifying.py`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from pyarrow import fs

from uvd.manifests.dataset import RETRY_PLAN, SHARD_FILE, Dataset, Shard
from uvd.manifests.kept_pictures import says_kept
from uvd.manifests.lease import writers
from uvd.manifests.storage import is_temporary
from uvd.manifests.verify_findings import Finding, Kind, Verification
from uvd.manifests.verify_shard import check_shard

BUNCH_SHARDS, BUNCH_BYTES = 64, 256 << 20
_THREADS = 4
_KNOWN = {"dataset.json", "sequences", "tokens", "runs", "dedup", "index"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at: all of a dataset by default.

    Attributes:
        sources: names below `sequences/`, with their tokens; all if empty.
        first, last: numbers of shards, both included.
    """

    sources: tuple[str, ...] = ()
    first: int = 0
    last: int | None = None

    @property
    def whole(self) -> bool:
        return not self.sources and self.whole_folders

    @property
    def whole_folders(self) -> bool:
        return self.first == 0 and self.last is None

    def has(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


EVERYTHING = Scope()


@dataclass(frozen=True, slots=True)
class Bunch:
    """Shards of one folder that are checked together: one job."""

    folder: str
    numbers: tuple[int, ...]

    @property
    def shard(self) -> int:
        return self.numbers[0]


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a bunch."""

    shards: int
    sequences: int
    inputs: int
    findings: list[Finding]


@dataclass
class Survey:
    """A dataset's folders, listed: what is wrong with them, and the shards that are to be checked."""

    findings: list[Finding] = field(default_factory=list)
    bunches: list[Bunch] = field(default_factory=list)
    shards: int = 0
    bytes: int = 0
    """Of their tars."""
    planned_inputs: dict[str, int] = field(default_factory=dict)
    """Of folders whose shards are all there and all looked at."""
    writing: dict[str, str] = field(default_factory=dict)
    without_pictures: int = 0
    """Image shards whose pictures were not kept, so that there is only their manifest to check."""


def verify(
    dataset: Dataset,
    *,
    deep: bool = False,
    scope: Scope = EVERYTHING,
    advance: Callable[[Checked], None] = lambda _: None,
) -> Verification:
    """Checks a dataset in this process, in threads.

    Args:
        deep: read and decode everything, not only manifests.
        advance: called after each bunch of shards, for progress.
    """
    return check_here(dataset, survey_folders(dataset, scope, deep), deep, advance)


def check_here(
    dataset: Dataset, survey: Survey, deep: bool, advance: Callable[[Checked], None] = lambda _: None
) -> Verification:
    """Checks the bunches of a survey in this process."""
    with ThreadPoolExecutor(_THREADS) as pool:

        def check(bunch: Bunch) -> Checked:
            checked = check_bunch(dataset, bunch, deep)
            advance(checked)
            return checked

        return conclude(survey, zip(survey.bunches, pool.map(check, survey.bunches), strict=True))


def conclude(survey: Survey, checked: Iterable[tuple[Bunch, Checked]]) -> Verification:
    """Adds up what the survey and the checks found, in an order of its own."""
    result = Verification(
        findings=list(survey.findings), writing=survey.writing, without_pictures=survey.without_pictures
    )
    for bunch, part in checked:
        result.add(bunch.folder, part.shards, part.sequences, part.inputs, part.findings)
    damaged = {finding.folder for finding in result.findings}
    for folder, planned in survey.planned_inputs.items():
        there = result.inputs.get(folder, 0)
        if there != planned and folder not in damaged:
            detail = f"its shards have {there} inputs, {planned} were planned"
            result.findings.append(Finding(folder, -1, "", Kind.CONSERVATION, detail))
    result.findings.sort()
    return result


def check_bunch(dataset: Dataset, bunch: Bunch, deep: bool) -> Checked:
    """Checks the shards of a bunch, one after another."""
    section, _, name = bunch.folder.partition("/")
    entry = dataset.info()[section][name]
    sequences = inputs = 0
    findings: list[Finding] = []
    for number in bunch.numbers:
        rows, planned, found = check_shard(dataset, Shard(bunch.folder, number), entry, deep)
        sequences, inputs = sequences + rows, inputs + planned
        findings += found
    return Checked(len(bunch.numbers), sequences, inputs, findings)


def survey_folders(dataset: Dataset, scope: Scope = EVERYTHING, deep: bool = False) -> Survey:
    """Lists all folders once: strangers, gaps, what other runs write, and bunches of shards to check."""
    info, survey = dataset.info(), Survey()
    holders, left = writers(dataset.storage)
    survey.writing = {holder.folder: str(holder) for holder in holders if holder.held}
    if scope.whole:
        survey.findings += _undeclared(dataset, info)
        for path in left:
            folder, _, name = path.rpartition("/")
            survey.findings.append(Finding(folder, -1, name, Kind.LEFTOVER, "lease of a run that was killed"))
    committed: dict[str, set[int]] = {}
    for section in ("sequences", "tokens"):
        for name, entry in sorted(info[section].items()):
            if scope.sources and name.rpartition("/")[2] not in scope.sources:
                continue
            folder = f"{section}/{name}"
            _survey_folder(dataset, folder, entry, scope, deep, committed, survey)
    return survey


def _undeclared(dataset: Dataset, info: Mapping[str, Any]) -> Iterator[Finding]:
    """Files and folders that `dataset.json` does not know."""
    known = {"": _KNOWN, "sequences": set(info["sequences"])}
    known["tokens"] = {name.partition("/")[0] for name in info["tokens"]}
    for tokenizer, source in dataset.token_folders():
        known.setdefault(f"tokens/{tokenizer}", set()).add(source)
    for folder, names in known.items():
        for name in sorted(set(dataset.storage.list(folder)) - names):
            if not folder and is_temporary(name):
                yield Finding("", -1, name, Kind.LEFTOVER, "left by a killed run")
            else:
                yield Finding(folder, -1, name, Kind.UNDECLARED, "dataset.json does not know it")


def _survey_folder(
    dataset: Dataset,
    folder: str,
    entry: Mapping[str, Any],
    scope: Scope,
    deep: bool,
    committed: dict[str, set[int]],
    survey: Survey,
) -> None:
    files = {info.base_name: info for info in dataset.storage.iter_files(folder)}
    matches = {name: match for name in files if (match := SHARD_FILE.match(name))}
    numbers = {int(match[1]) for match in matches.values() if match[2] == "parquet"}
    committed[folder] = numbers
    at_work = _writer_of(folder, entry) in survey.writing
    images_at_work = f"sequences.{folder.rpartition('/')[2]}" in survey.writing  # tokens come later
    if "retry_of" in entry:
        survey.findings += _retry_plan(dataset, folder, entry, files)
    if scope.whole_folders:
        survey.findings += _strangers(folder, files, matches, at_work)
        if not says_kept(entry):
            survey.findings += _tars(folder, matches)
    if not at_work:
        survey.findings += _orphans(folder, matches, numbers, scope)
    if not at_work and not images_at_work:
        survey.findings += _gaps(
            dataset, folder, entry, scope, committed, {int(match[1]) for match in matches.values()}
        )
    sizes = files if dataset.base is None else {}
    chosen = sorted(number for number in numbers if scope.has(number))
    if not says_kept(entry):
        survey.without_pictures += len(chosen)
    for bunch, size in _bunches(folder, chosen, sizes, deep):
        survey.bunches.append(bunch)
        survey.shards += len(bunch.numbers)
        survey.bytes += size
    planned = (entry.get("plan") or {}).get("inputs")
    if planned is not None and dataset.base is None and scope.whole_folders and not at_work:
        survey.planned_inputs[folder] = planned


def _writer_of(folder: str, entry: Mapping[str, Any]) -> str:
    """The name under which a run that writes the folder has its lease: rounds of retries go by their source's."""
    held = f"sequences/{entry['retry_of']}" if "retry_of" in entry else folder
    return held.replace("/", ".")


def _retry_plan(
    dataset: Dataset, folder: str, entry: Mapping[str, Any], files: Mapping[str, fs.FileInfo]
) -> Iterator[Finding]:
    if RETRY_PLAN not in files:
        yield Finding(folder, -1, RETRY_PLAN, Kind.RETRY_PLAN, "missing")
    elif hashlib.sha256(dataset.storage.read(f"{folder}/{RETRY_PLAN}")).hexdigest() != entry["retry_plan_sha256"]:
        yield Finding(folder, -1, RETRY_PLAN, Kind.RETRY_PLAN, "not what dataset.json records")


def _strangers(
    folder: str, files: Mapping[str, fs.FileInfo], matches: Mapping[str, Any], at_work: bool
) -> Iterator[Finding]:
    for name in files.keys() - matches.keys() - {RETRY_PLAN}:
        if not is_temporary(name):
            yield Finding(folder, -1, name, Kind.EXTRA_FILE, "not a file of a dataset")
        elif not at_work:
            yield Finding(folder, -1, name, Kind.LEFTOVER, "not a file of a dataset (left by a killed run?)")


def _tars(folder: str, matches: Mapping[str, Any]) -> Iterator[Finding]:
    for name, match in matches.items():
        if match[2] == "tar":
            yield Finding(folder, -1, name, Kind.EXTRA_FILE, "a tar, where pictures are not kept")


def _orphans(folder: str, matches: Mapping[str, Any], committed: set[int], scope: Scope) -> Iterator[Finding]:
    for name, match in matches.items():
        if int(match[1]) not in committed and scope.has(int(match[1])):
            yield Finding(folder, -1, name, Kind.LEFTOVER, "orphan, its shard has no manifest")


def _gaps(
    dataset: Dataset,
    folder: str,
    entry: Mapping[str, Any],
    scope: Scope,
    committed: Mapping[str, set[int]],
    seen: set[int],
) -> Iterator[Finding]:
    """Shards that were planned and are not there, a finding a run of them; shards that were not planned."""
    if dataset.base is not None:
        return  # a view has whichever shards it needs
    there = committed[folder]
    section, _, name = folder.partition("/")
    source = name.rpartition("/")[2]
    images = f"sequences/{source}"
    if section == "tokens" and "imported" not in entry:
        # As many as image shards are planned; tokens without images are named one by one.
        about = dataset.info()["sequences"].get(source)
        count = planned_shards(dataset, images, about) if about is not None else None
        planned = set(range(count)) if count is not None else committed.get(images, set())
    else:
        count = planned_shards(dataset, folder, entry)
        planned = set(range(count if count is not None else max(seen, default=-1) + 1))
        for number in sorted(there - planned):
            yield Finding(folder, number, "", Kind.FOREIGN_MANIFEST, f"the plan has {len(planned)} shards")
    missing = sorted(number for number in planned - there if scope.has(number))
    start = 0
    for place in range(1, len(missing) + 1):
        if place == len(missing) or missing[place] != missing[place - 1] + 1:
            first, last = missing[start], missing[place - 1]
            yield Finding(folder, first, "", Kind.GAP_IN_PLAN, "planned and not there", last if last > first else -1)
            start = place


def planned_shards(dataset: Dataset, folder: str, entry: Mapping[str, Any]) -> int | None:
    """How many shards the folder's plan has, if it is known."""
    if "retry_of" not in entry:
        return (entry.get("plan") or {}).get("shards")
    try:
        file = pq.ParquetFile(io.BytesIO(dataset.storage.read(f"{folder}/{RETRY_PLAN}")))
    except (OSError, ValueError):
        return None  # a finding of its own
    return -(-file.metadata.num_rows // entry["retry_shard_size"])


def _bunches(
    folder: str, numbers: list[int], files: Mapping[str, fs.FileInfo], deep: bool
) -> Iterator[tuple[Bunch, int]]:
    """Bunches of up to 64 shards and, if tars are read, about 256 MB; with the bytes of their tars."""
    waiting, size = list[int](), 0
    for number in numbers:
        tar = files.get(f"{number:06d}.tar")
        waiting.append(number)
        size += (tar.size or 0) if tar is not None else 0
        if len(waiting) == BUNCH_SHARDS or (deep and size >= BUNCH_BYTES):
            yield Bunch(folder, tuple(waiting)), size
            waiting, size = [], 0
    if waiting:
        yield Bunch(folder, tuple(waiting)), size
