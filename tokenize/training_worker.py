"""One worker of a tokenizer's training, in this process or started by Ray Train, and where its pictures come from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from uvd.manifests.dataset import Dataset
from uvd.tokenize.picture_pool import EmptySplitError, PicturePool, array_pool, shard_pool
from uvd.tokenize.training import LOG, MEASURED, train_tokenizer
from uvd.tokenize.training_config import TokenizerTrainConfig
from uvd.tokenize.training_log import Progress, Record, followed
from uvd.tokenize.workers import Workers, fit_on_ray

_LEFT_OUT = ("l1", "codes_used", "adversarial_scale", "adversarial")


def train_on_workers(
    config: TokenizerTrainConfig,
    out: Path,
    *,
    dataset: str | None = None,
    pool: Path | None = None,
    heldout: Path | None = None,
    resume: bool = False,
    use_ray: bool = True,
    on_progress: Progress | None = None,
) -> None:
    """Trains on the pictures of a dataset's image shards or of a `.npy` file, on `config.num_workers` workers.

    Args:
        out: run folder; on several machines, on a file system that all of them see.
        dataset: its `train` split is learned from; its `val` split, if it has one, is measured.
        pool: `(N, 256, 256, 3)` uint8 RGB pictures instead of a dataset.
        heldout: such a file to measure on.
        resume: go on from the state in `out`, if there is one.
        use_ray: run as Ray Train workers (Ray must be initialised), else as one in this process.
        on_progress: called with each record of the log, from another thread if Ray is used.

    Raises:
        DatasetError: if there are no pictures.
        TokenizerError: if `out` holds another run.
        DeviceError: if Ray lacks the CPUs or GPUs.
    """
    out = out.expanduser().absolute()
    settings = {
        "config": config.model_dump(mode="json"),
        "out": str(out),
        "dataset": None if dataset is None else Dataset.existing(dataset).address,
        "pool": None if pool is None else str(pool.expanduser().absolute()),
        "heldout": None if heldout is None else str(heldout.expanduser().absolute()),
        "resume": resume,
    }
    if not use_ray:
        train_worker(settings, on_progress)
        return
    out.mkdir(parents=True, exist_ok=True)
    with followed(out / LOG, on_progress):
        fit_on_ray(train_worker, settings, config, out)


def train_worker(settings: dict[str, Any], on_progress: Progress | None = None) -> None:
    """What each worker runs; `settings` are those of `train_on_workers`."""
    config = TokenizerTrainConfig(**settings["config"])
    workers = Workers(config.device, config.num_threads)
    if workers.rank:
        workers.wait()  # until the first worker has decoded the dataset's pictures
    pool, heldout = _pools(settings, config)
    if not workers.rank:
        workers.wait()
    out, resume = Path(settings["out"]), settings["resume"]
    train_tokenizer(config, pool, out, heldout=heldout, resume=resume, on_progress=on_progress, workers=workers)


def _pools(settings: dict[str, Any], config: TokenizerTrainConfig) -> tuple[PicturePool, PicturePool | None]:
    heldout = None if settings["heldout"] is None else array_pool(Path(settings["heldout"]))
    if settings["dataset"] is None:
        return array_pool(Path(settings["pool"])), heldout
    dataset, cache = Dataset(settings["dataset"]), Path(settings["out"])
    pool = shard_pool(dataset, cache, max_pictures=config.max_pictures)
    if heldout is None:
        # A dataset need not hold anything out; then nothing is measured.
        with suppress(EmptySplitError):
            heldout = shard_pool(dataset, cache, "val", max_pictures=MEASURED)
    return pool, heldout


def progress_line(record: Record, steps: int) -> str:
    """One line for a person: `step 350/8000 · loss 0.1224 · psnr 22.5 · …`."""
    shown = (f"{name} {value:,g}" for name, value in record.items() if name not in ("step", *_LEFT_OUT))
    return " · ".join([f"step {record['step']:,}/{steps:,}", *shown])
