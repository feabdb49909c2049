"""What `uvd verify --repair` is to do about each finding, and whether it can be done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from pyarrow import fs
from rich.console import Console

from uvd.manifests.dataset import SHARD_FILE, Dataset
from uvd.manifests.kept_pictures import pictures_kept
from uvd.manifests.lease import Lease
from uvd.manifests.verify import planned_shards
from uvd.manifests.verify_findings import Finding, Kind
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import IngestJob, plan_file, round_plan
from uvd.pipeline.plan_file import PlanFile
from uvd.pipeline.recalling import CannotRebuildError, recall_config, recall_tokenizer
from uvd.pipeline.tokenizing import TokenizeSettings
from uvd.sequences.errors import UserError
from uvd.sources import SourceConfig

NOT_THE_SHARDS = (Kind.LEFTOVER, Kind.EXTRA_FILE)
BEYOND_REPAIR = {
    Kind.UNREACHABLE: "it could not be read",
    Kind.UNDECLARED: "remove it yourself if nobody needs it",
    Kind.BASE: "repair the base, or make the view anew with `uvd subset --overwrite`",
    Kind.RETRY_PLAN: "its plan says what its shards are made of",
}
OTHERS_MANIFEST = (Kind.FOREIGN_MANIFEST, Kind.DAMAGED_MANIFEST, Kind.MIXED_FINGERPRINT)
"""Kinds of which a manifest, if it can be read at all, does not say what the shard was."""


@dataclass(frozen=True)
class Means:
    """What is at hand for making shards again.

    Attributes:
        settings: `NAME.key=value`, over what is recorded of a source: where its inputs are now.
        tokenizer: folder of the tokenizer, if it is not where it was.
        lease: holds all folders; only a dry run does without.
    """

    console: Console
    lease: Lease | None
    address: str
    num_cpus: int | None = None
    settings: Sequence[str] = ()
    tokenizer: str | None = None

    def overrides(self, name: str) -> list[str]:
        return [setting.partition(".")[2] for setting in self.settings if setting.partition(".")[0] == name]


@dataclass
class Repair:
    """What is to be done, and how it went.

    Attributes:
        shards: to be made again, by folder.
        doubtful: token shards that are made again only if their image shard comes out as another.
        surplus: shards that no plan has, by folder: to be removed.
        files: to be removed.
        impossible: place → why it cannot be repaired; it is left as it is.
        changed: shards that were made again and are not what they were: their inputs have changed.
        unsound: what verification finds in shards that were made again.
        interrupted: a signal came.
    """

    shards: dict[str, list[int]] = field(default_factory=dict)
    doubtful: dict[str, list[int]] = field(default_factory=dict)
    surplus: dict[str, list[int]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    impossible: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        return not (self.impossible or self.changed or self.unsound or self.interrupted)

    def lines(self) -> Iterator[str]:
        """The plan, a line each."""
        yield from (f"{path}: remove" for path in self.files)
        for folder, numbers in self.surplus.items():
            yield from (f"{folder}/{number:06d}: remove, no plan has it" for number in numbers)
        for folder, numbers in self.shards.items():
            yield from (f"{folder}/{number:06d}: make again" for number in numbers)
        for folder, numbers in self.doubtful.items():
            yield from (f"{folder}/{number:06d}: keep, if its image shard comes out as it was" for number in numbers)
        yield from (f"{place}: cannot be repaired: {why}" for place, why in self.impossible.items())

    def give_up(self, folder: str, why: str) -> None:
        """Leaves all of a folder as it is."""
        for number in self.shards.pop(folder, []) + self.surplus.pop(folder, []):
            self.impossible[f"{folder}/{number:06d}"] = why
        for path in [path for path in self.files if path.rpartition("/")[0] == folder]:
            # Files of a shard without manifest may be all that is left of it.
            if SHARD_FILE.match(path.rpartition("/")[2]):
                self.files.remove(path)
                self.impossible[path] = why


@dataclass
class Opened:
    """Sources that can be run again, by folder: config and plan."""

    configs: dict[str, SourceConfig] = field(default_factory=dict)
    plans: dict[str, PlanFile[IngestJob]] = field(default_factory=dict)
    tokenizers: dict[str, TokenizeSettings] = field(default_factory=dict)


def sort_findings(dataset: Dataset, findings: Iterable[Finding]) -> Repair:
    """What to do about each finding, before anybody has looked whether it can be done."""
    repairs = Repair()
    wanted: dict[str, set[int]] = {}
    doubtful: dict[str, set[int]] = {}
    for finding in findings:
        if dataset.base is not None:
            repairs.impossible[finding.place] = "a view is made anew with `uvd subset --overwrite`"
        elif finding.kind in BEYOND_REPAIR:
            repairs.impossible[finding.place] = BEYOND_REPAIR[finding.kind]
        elif finding.kind in NOT_THE_SHARDS:
            info = dataset.storage.info(finding.place)
            if info.type == fs.FileType.Directory:
                repairs.impossible[finding.place] = "a folder; remove it yourself if nobody needs it"
            else:
                repairs.files.append(finding.place)
        elif not finding.shards:
            repairs.impossible[finding.place] = finding.detail
        else:
            chosen = doubtful if finding.kind is Kind.OTHER_IMAGES else wanted
            chosen.setdefault(finding.folder, set()).update(finding.shards)
    for folder, numbers in sorted(wanted.items()):
        repairs.shards[folder] = sorted(numbers)
    for folder, numbers in sorted(doubtful.items()):
        if left := sorted(numbers - wanted.get(folder, set())):
            repairs.doubtful[folder] = left
    _set_surplus_tokens_apart(dataset, repairs)
    return repairs


def _set_surplus_tokens_apart(dataset: Dataset, repairs: Repair) -> None:
    """Token shards of image shards that no plan has."""
    sequences = dataset.info()["sequences"]
    for group in (repairs.shards, repairs.doubtful):
        for folder in [folder for folder in group if folder.startswith("tokens/")]:
            source = folder.rpartition("/")[2]
            count = planned_shards(dataset, f"sequences/{source}", sequences[source]) if source in sequences else None
            if count is None:
                continue
            numbers = group.pop(folder)
            if kept := [number for number in numbers if number < count]:
                group[folder] = kept
            if surplus := [number for number in numbers if number >= count]:
                repairs.surplus[folder] = sorted({*repairs.surplus.get(folder, []), *surplus})


def open_all(dataset: Dataset, repairs: Repair, findings: Sequence[Finding], means: Means, stack: ExitStack) -> Opened:
    """Finds out what can be made again; gives up what cannot."""
    opened = Opened()
    orphaned = {path.rpartition("/")[0] for path in repairs.files if SHARD_FILE.match(path.rpartition("/")[2])}
    for folder in sorted(repairs.shards.keys() | orphaned):
        section, _, name = folder.partition("/")
        try:
            if not pictures_kept(dataset, name.rpartition("/")[2]):
                raise CannotRebuildError("its pictures are not kept: remove its files, and `uvd build` makes it again")
            if any(place.startswith(f"{folder}/plan.") for place in repairs.impossible):
                raise CannotRebuildError(BEYOND_REPAIR[Kind.RETRY_PLAN])
            if section == "sequences":
                _open_source(dataset, name, repairs, findings, means, opened, stack)
            else:
                open_tokenizer(dataset, folder, findings, means, opened)
        except UserError as error:
            repairs.give_up(folder, str(error))
    return opened


def _open_source(
    dataset: Dataset,
    name: str,
    repairs: Repair,
    findings: Sequence[Finding],
    means: Means,
    opened: Opened,
    stack: ExitStack,
) -> None:
    """
    Raises:
        UserError: if the source cannot be run again, or its inputs are not those that the dataset was made from.
    """
    folder, entry = f"sequences/{name}", dataset.info()["sequences"][name]
    source = entry.get("retry_of", name)
    config = recall_config(dataset, source, means.overrides(source))
    recorded = config_entry(config)["fingerprint"]
    jobs = plan_file(dataset, config, recorded) if source == name else round_plan(dataset, config, name)
    stack.enter_context(jobs)
    planned = {job.shard: job.fingerprint for job in jobs}
    untold = {number for f in findings if f.folder == folder and f.kind in OTHERS_MANIFEST for number in f.shards}
    changed = [
        number
        for number, metadata in _metadata(dataset, folder)
        if number not in untold and metadata["fingerprint"] != planned.get(number)
    ]
    count = (entry.get("plan") or {}).get("shards", len(planned))
    if changed or count != len(planned):
        which = f"shard {changed[0]:06d} was made from others" if changed else f"{count} shards were planned"
        raise CannotRebuildError(f"its inputs are not what they were (added, removed or changed): {which}")
    wanted = repairs.shards.pop(folder, [])
    surplus = [number for number in wanted if number not in planned]
    if surplus:
        repairs.surplus[folder] = surplus
    if kept := [number for number in wanted if number in planned]:
        repairs.shards[folder] = kept
    opened.configs[folder], opened.plans[folder] = config, jobs


def open_tokenizer(dataset: Dataset, folder: str, findings: Sequence[Finding], means: Means, opened: Opened) -> None:
    """
    Raises:
        UserError: if the tokenizer, or its device, is not at hand.
    """
    if folder not in opened.tokenizers:
        made = _metadata_of_any(dataset, folder, findings)
        name = folder.partition("/")[2]
        opened.tokenizers[folder] = recall_tokenizer(dataset, name, made, means.tokenizer, _gpus(means.address))


def _metadata(dataset: Dataset, folder: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, metadata) of the manifests that can be read."""
    for shard in dataset.shards(folder):
        with suppress(ValueError, OSError):
            metadata = dataset.metadata(shard)
            if isinstance(metadata, dict) and isinstance(metadata.get("fingerprint"), str):
                yield shard.number, metadata


def _metadata_of_any(dataset: Dataset, folder: str, findings: Iterable[Finding]) -> dict[str, Any] | None:
    untold = {number for f in findings if f.folder == folder and f.kind in OTHERS_MANIFEST for number in f.shards}
    return next((metadata for number, metadata in _metadata(dataset, folder) if number not in untold), None)


def _gpus(address: str) -> bool:
    if address != "local":
        return True  # the cluster says so when it is asked to
    import torch

    return torch.cuda.is_available()
