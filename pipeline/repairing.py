"""`uvd verify --repair`: exactly the shards that verification found damaged or missing, made again as they were.

What is damaged is removed, manifest first, so that a killed repair leaves shards that are missing and none that lie:
the same command, or the run that made the dataset, goes on from there. Image shards come first. A token shard stays if
its image shard came out as it was. What cannot be made again is named and left as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress

import numpy as np

from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.duplicates import read_duplicates
from uvd.manifests.verify import Bunch, check_here, survey_folders
from uvd.manifests.verify_findings import Finding, Kind, Verification
from uvd.pipeline.ingest import ingest_stage
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.repair_plan import OTHERS_MANIFEST, Means, Opened, Repair, open_all, open_tokenizer, sort_findings
from uvd.pipeline.stage import Missing, MissingJobs, run_stage
from uvd.pipeline.tokenizing import ALLOCATOR, TokenizeJob, plan, run_tokenizing
from uvd.sequences.errors import UserError


def repair(dataset: Dataset, found: Verification, means: Means, *, dry_run: bool = False) -> Repair:
    """Makes damaged shards again and removes what does not belong.

    Args:
        found: what verification found while `means.lease` was held.
        dry_run: only say what would be done.
    """
    repairs = sort_findings(dataset, found.findings)
    with ExitStack() as stack:
        opened = open_all(dataset, repairs, found.findings, means, stack)
        if dry_run or not (repairs.shards or repairs.doubtful or repairs.surplus or repairs.files):
            return repairs
        if means.lease is None:
            raise ValueError("a repair needs a lease")
        before = {shard: _sha(dataset, shard, found.findings) for shard in _shards(repairs.shards)}
        for path in repairs.files:
            _delete(dataset, path)
        for shard in _shards(repairs.surplus):
            _remove(dataset, shard)
        to_make = bool(repairs.shards or repairs.doubtful)
        with ray_runtime(means.address, means.num_cpus, ALLOCATOR) if to_make else nullcontext():
            _make_images(dataset, repairs, opened, means)
            if not repairs.interrupted:
                _choose_tokens(dataset, repairs, opened, found.findings, means)
                _make_tokens(dataset, repairs, opened, means)
    _check_again(dataset, repairs, before)
    return repairs


def _shards(numbers: Mapping[str, Sequence[int]]) -> Iterator[Shard]:
    for folder, which in numbers.items():
        yield from (Shard(folder, number) for number in which)


def _sha(dataset: Dataset, shard: Shard, findings: Iterable[Finding]) -> str:
    """What the tar's sha256 was, as far as the manifest can be believed; empty if not."""
    kinds = {f.kind for f in findings if f.folder == shard.folder and shard.number in f.shards}
    written_over = kinds & {Kind.MEMBERS, Kind.PIXELS, Kind.TOKENS} and Kind.CHECKSUM not in kinds
    if written_over or kinds & {*OTHERS_MANIFEST, Kind.GAP_IN_PLAN, Kind.OTHER_IMAGES}:
        return ""
    with suppress(ValueError, OSError, KeyError, TypeError):
        return str(dataset.metadata(shard)["tar_sha256"])
    return ""


def _delete(dataset: Dataset, path: str) -> None:
    with suppress(FileNotFoundError):
        dataset.storage.delete(path)


def _remove(dataset: Dataset, shard: Shard) -> None:
    """Manifest first: from then on the shard does not exist."""
    for path in (shard.manifest, shard.rejects, shard.tar):
        _delete(dataset, path)


def _make_images(dataset: Dataset, repairs: Repair, opened: Opened, means: Means) -> None:
    for folder in [folder for folder in repairs.shards if folder.startswith("sequences/")]:
        for number in repairs.shards[folder]:
            _remove(dataset, Shard(folder, number))
        jobs, wanted = opened.plans[folder], set(repairs.shards[folder])
        others = np.array([job.shard for job in jobs if job.shard not in wanted], np.int64)
        missing = Missing(MissingJobs(jobs, len(jobs), others), len(jobs), Counter())
        name = folder.partition("/")[2]
        stage = ingest_stage(opened.configs[folder], name, means.address, means.num_cpus, means.lease)
        result = run_stage(dataset, stage, missing, means.console)
        repairs.interrupted |= result.run.interrupted


def _choose_tokens(
    dataset: Dataset, repairs: Repair, opened: Opened, findings: Sequence[Finding], means: Means
) -> None:
    """Adds the token shards that their image shards, as they are now, do not fit."""
    for tokenizer, source in dataset.token_folders():
        folder, images = f"tokens/{tokenizer}/{source}", f"sequences/{source}"
        wanted = set(repairs.shards.get(folder, []))
        doubtful = {*repairs.doubtful.pop(folder, []), *repairs.shards.get(images, [])}
        for number in sorted(wanted | doubtful):
            beyond = f"{images}/{number:06d}" in repairs.impossible
            if beyond or not dataset.storage.exists(Shard(images, number).manifest):
                wanted.discard(number)
                repairs.impossible[f"{folder}/{number:06d}"] = "its image shard is not there, or damaged"
            elif number in doubtful and _is_of_others(dataset, Shard(folder, number), Shard(images, number)):
                wanted.add(number)
        repairs.shards.pop(folder, None)
        if wanted:
            repairs.shards[folder] = sorted(wanted)
            try:
                open_tokenizer(dataset, folder, findings, means, opened)
            except UserError as error:
                repairs.give_up(folder, str(error))


def _is_of_others(dataset: Dataset, tokens: Shard, images: Shard) -> bool:
    """Whether a token shard was not made from the image shard that is there now."""
    if not dataset.storage.exists(tokens.manifest):
        return True
    with suppress(ValueError, KeyError, TypeError):
        return bool(dataset.metadata(tokens)["image_tar_sha256"] != dataset.metadata(images)["tar_sha256"])
    return True


def _make_tokens(dataset: Dataset, repairs: Repair, opened: Opened, means: Means) -> None:
    for folder in [folder for folder in repairs.shards if folder.startswith("tokens/")]:
        name = folder.partition("/")[2]
        source = name.rpartition("/")[2]
        wanted = set(repairs.shards[folder])
        for number in wanted:
            _remove(dataset, Shard(folder, number))
        recorded = dataset.info()["tokens"][name]["fingerprint"]
        settings = opened.tokenizers[folder]
        marks = read_duplicates(dataset, settings.duplicates) if settings.duplicates is not None else None
        jobs = [job for job in plan(dataset, source, recorded, marks) if job.shard in wanted]
        missing: Missing[TokenizeJob] = Missing(
            MissingJobs(jobs, len(jobs), np.array([], np.int64)), len(jobs), Counter()
        )
        args = (settings, means.lease, None, means.address, means.num_cpus, means.console)
        for _, result in run_tokenizing(dataset, [(source, folder, missing)], *args):
            repairs.interrupted |= result.run.interrupted


def _check_again(dataset: Dataset, repairs: Repair, before: Mapping[Shard, str]) -> None:
    """Verifies, deep, the shards that were made again, and the folders as lists of files."""
    survey = survey_folders(dataset)
    survey.planned_inputs.clear()
    survey.writing.clear()
    survey.bunches = [Bunch(folder, tuple(numbers)) for folder, numbers in repairs.shards.items()]
    survey.findings = [
        finding
        for finding in survey.findings
        if finding.kind is Kind.GAP_IN_PLAN and set(finding.shards) & set(repairs.shards.get(finding.folder, []))
    ]
    for finding in check_here(dataset, survey, deep=True).findings:
        repairs.unsound.append(str(finding))
    for shard, sha in before.items():
        with suppress(ValueError, OSError):  # not there: a finding above
            if sha and dataset.metadata(shard)["tar_sha256"] != sha:
                repairs.changed.append(f"{shard.folder}/{shard.name}")
