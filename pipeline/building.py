"""Building: raw inputs → image shards and token shards in one pass.

A Ray task makes one shard as `uvd ingest` does, and hands its pictures to actors that encode, through the object store.
What comes out is, byte for byte, what `uvd ingest` and `uvd tokenize` make one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.manifests.lease import Lease
from uvd.pipeline.build_shard import BuildActor, BuildJob, build_with
from uvd.pipeline.config import config_entry
from uvd.pipeline.encoding_service import RunningService
from uvd.pipeline.executors import ActorExecutor, Executor, TaskExecutor, ray_options
from uvd.pipeline.ingest import ALLOCATOR, IngestJob, declare_and_compare, plan_file
from uvd.pipeline.plan_file import PlanFile
from uvd.pipeline.ray_runtime import LOCAL, ray_runtime
from uvd.pipeline.stage import Missing, MissingJobs, Stage, StageResult, find_missing, run_stage
from uvd.pipeline.tokenizing import TokenizeSettings, check_gpus, plan, resolved, tokens_entry
from uvd.pipeline.writing import writing
from uvd.sequences.errors import DeviceError
from uvd.sources import SourceConfig, source_class
from uvd.sources.photos import PhotoConfig
from uvd.tokenize.tokenizer import find_folder


@dataclass(frozen=True)
class BuildOptions:
    """How to build, beyond what is built.

    Attributes:
        keep_images: keep the tars of image shards.
        wait: wait for another run that writes the same, rather than refuse.
    """

    keep_images: bool = True
    num_gpus: int | None = None
    address: str = LOCAL
    num_cpus: int | None = None
    overwrite: bool = False
    wait: bool = False


class _Plan:
    """Jobs of a source; each iteration reads the plan of its inputs anew."""

    def __init__(self, inputs: PlanFile[IngestJob], tokenizer: str, fingerprint: str, keep_images: bool) -> None:
        self._inputs, self._about = inputs, (tokenizer, fingerprint, keep_images)

    def __iter__(self) -> Iterator[BuildJob]:
        return (BuildJob(job, *self._about) for job in self._inputs)


def build(
    configs: Sequence[SourceConfig],
    out: str,
    settings: TokenizeSettings,
    options: BuildOptions = BuildOptions(),
    console: Console | None = None,
) -> Iterator[tuple[str, StageResult]]:
    """Makes image shards and tokens of sources, or what is missing of them.

    Yields:
        (source, result), as each is done.

    Raises:
        SourceError: if an input as a whole cannot be used.
        FolderHeldError: if another run writes one of the folders.
        ConfigChangedError: if the dataset was made with other settings, inputs or another tokenizer of that name.
        TokenizerError: if the tokenizer cannot be loaded.
    """
    console = console or Console(stderr=True)
    dataset = Dataset(out)
    settings = replace(settings, tokenizer=str(find_folder(settings.tokenizer)))
    name, entry = tokens_entry(settings)
    sources = {config.folder: config for config in configs}
    folders = [f"sequences/{source}" for source in sources] + [f"tokens/{name}/{source}" for source in sources]
    with ExitStack() as stack:
        # The plans come first: inputs that cannot be used must not leave an empty dataset.
        inputs = {
            source: stack.enter_context(plan_file(dataset, config, config_entry(config)["fingerprint"]))
            for source, config in sources.items()
        }
        lease = stack.enter_context(writing(dataset, folders, console, overwrite=options.overwrite, wait=options.wait))
        missing: dict[str, Missing[BuildJob]] = {}
        for source, config in sources.items():
            missing[source] = _find_missing(dataset, config, inputs[source], name, entry, options)
        if any(len(part.jobs) for part in missing.values()):
            stack.enter_context(ray_runtime(options.address, options.num_cpus, ALLOCATOR))
            settings = resolved(settings)
            if options.address == LOCAL:
                check_gpus(settings, options.num_gpus)
        made = _Making(
            dataset, name, settings, options, [sources[source] for source, part in missing.items() if part.jobs]
        )
        stack.callback(made.close)
        for source, part in missing.items():
            result = made.run(sources[source], part, lease, console)
            yield source, result
            if result.run.interrupted:
                return


def _find_missing(
    dataset: Dataset,
    config: SourceConfig,
    inputs: PlanFile[IngestJob],
    tokenizer: str,
    entry: dict[str, Any],
    options: BuildOptions,
) -> Missing[BuildJob]:
    """Shards of which the tokens are not there, whether their pictures are or not."""
    keep, overwrite = options.keep_images, options.overwrite
    source = config.folder
    images = declare_and_compare(dataset, source, config_entry(config), inputs, keep_pictures=keep, overwrite=overwrite)
    folder = f"tokens/{tokenizer}/{source}"
    dataset.declare("tokens", f"{tokenizer}/{source}", entry, overwrite=overwrite)
    tokens = find_missing(dataset, folder, list(plan(dataset, source, entry["fingerprint"])), overwrite=overwrite)
    totals = Counter(images.totals)
    for job in tokens.jobs:  # its report will count these
        metadata = dataset.metadata(job.image_shard)
        totals.subtract({name: metadata[name] for name in images.totals})
    totals["tokens"] = tokens.totals["tokens"]
    done = np.array([shard.number for shard in dataset.shards(folder)], np.int64)
    jobs = _Plan(inputs, tokenizer, entry["fingerprint"], keep)
    return Missing(MissingJobs(jobs, images.planned, done), images.planned, totals)


class _Making:
    """Runs what is missing, source by source, on one pool of actors, started with the first job."""

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: str,
        settings: TokenizeSettings,
        options: BuildOptions,
        configs: Sequence[SourceConfig],
    ) -> None:
        self._dataset, self._tokenizer, self._settings, self._options = dataset, tokenizer, settings, options
        self._demands = [_demand(config) for config in configs]
        self._running: RunningService | None = None

    def close(self) -> None:
        if self._running is not None:
            self._running.close()

    def _service(self) -> RunningService:
        if self._running is None:
            self._running = RunningService(self._settings, self._options.num_gpus, self._demands)
        return self._running

    def run(self, config: SourceConfig, missing: Missing[BuildJob], lease: Lease, console: Console) -> StageResult:
        options, tokens = self._options, f"tokens/{self._tokenizer}/{config.folder}"
        logged = {
            "config": config.model_dump(mode="json"),
            "tokenizer": self._settings.logged(),
            "keep_images": options.keep_images,
        }
        stage = Stage(
            "build",
            f"sequences/{config.folder}",
            "images",
            lambda: _executor(config, self._service()),
            options.address,
            options.num_cpus,
            ALLOCATOR,
            logged,
            lease,
        )
        self._dataset.sweep(tokens)
        result = run_stage(self._dataset, stage, missing, console)
        self._dataset.sweep(tokens)
        return result


def _demand(config: SourceConfig) -> dict[str, float]:
    return config.resources.demand(source_class(config.source).num_cpus)


class BuildExecutor(TaskExecutor[BuildJob]):
    """Tasks beside the actors that encode for them."""

    def __init__(self, config: SourceConfig, running: RunningService) -> None:
        super().__init__(build_with(running.service), source_class(config.source).num_cpus, config.resources)
        self._running = running

    def has_room(self, in_flight: int) -> bool:
        self._running.check()
        return super().has_room(in_flight)


def _executor(config: SourceConfig, running: RunningService) -> Executor[BuildJob]:
    if not (isinstance(config, PhotoConfig) and config.estimate.wanted):
        return BuildExecutor(config, running)
    if config.estimate.device == "cuda" or "GPU" in _demand(config):
        raise DeviceError(
            f"source {config.folder}: networks of `estimate` and the tokenizer cannot share GPUs in one build. Use "
            "`estimate.device: cpu`, or `uvd ingest` and then `uvd tokenize`."
        )
    demand = _demand(config)
    actor = ray.remote(**ray_options(demand))(BuildActor)
    return ActorExecutor(lambda: actor.remote(running.service), demand)
