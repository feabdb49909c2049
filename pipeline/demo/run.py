"""The demo from end to end: inputs → sequences → tokens → statistics → training → predictions → pictures and an index.

Each step is what the command of the same name does, on one local Ray. Interrupted anywhere, it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.cli_inspect import print_statistics
from uvd.pipeline.config import read_yaml, validate
from uvd.pipeline.demo.inputs import lay_out
from uvd.pipeline.demo.photo_server import serve, write_urls
from uvd.pipeline.demo.pictures import draw_pictures, write_index
from uvd.pipeline.ingest import ingest
from uvd.pipeline.ray_runtime import ray_runtime
from uvd.pipeline.reporting import report
from uvd.pipeline.tokenizing import ALLOCATOR, TokenizeSettings, tokenize
from uvd.sources import SourceConfig, source_class
from uvd.trainer.config import TrainConfig
from uvd.trainer.log import progress_line
from uvd.trainer.train import MODEL, train

TOKENIZER = "uvd-small"
CONFIGS = Path(__file__).parents[2] / "configs"


def run(out: Path, train_minutes: float, console: Console) -> bool:
    """Runs the demo into `out`; returns False if something is missing or wrong in the end.

    Raises:
        SamplesError: when the sample packages cannot be fetched.
    """
    started = time.monotonic()
    inputs, dataset_folder, model_run, pictures = out / "inputs", out / "dataset", out / "run", out / "out"
    lay_out(inputs, console)
    with ray_runtime(environment=ALLOCATOR):
        if not _build(inputs, str(dataset_folder), console):
            return False
        dataset = Dataset.existing(str(dataset_folder))
        print_statistics(dataset, console)
        checked = verify(dataset, deep=True)
        for problem in checked.problems:
            console.print(problem, style="red", markup=False)
        console.print(f"verified {checked.shards} shards byte by byte: {len(checked.problems)} problems", markup=False)
        if checked.problems:
            return False
        _train(dataset_folder, model_run, train_minutes, console)
    console.print("drawing pictures and predictions", markup=False)
    drawn = draw_pictures(dataset, model_run / MODEL, TOKENIZER, pictures)
    index = write_index(pictures, drawn, dataset)
    minutes = (time.monotonic() - started) / 60
    console.print(f"\nThe demo took {minutes:.1f} minutes. Open these:", style="bold")
    for path in [*(picture.path for picture in drawn), index]:
        console.print(f"  {path}", markup=False, highlight=False)
    return True


def _build(inputs: Path, dataset: str, console: Console) -> bool:
    """Ingests every source and tokenizes all of it; returns whether every shard is there."""
    complete = True
    with serve(inputs / "photos", inputs / "port.txt") as address:
        urls = inputs / "laion" / "urls.parquet"
        if not urls.exists():
            write_urls(inputs / "photos", address, urls)
        for config in source_configs(inputs):
            result = ingest(config, dataset, console=console)
            if result.run.interrupted:
                report(result, f"sequences/{config.folder}", dataset, console)
                return False
            complete &= report(result, f"sequences/{config.folder}", dataset, console)
    tokens = TokenizeSettings(TOKENIZER, device="cpu")
    for source, result in tokenize(Dataset.existing(dataset), (), tokens, console=console):
        complete &= report(result, f"tokens of {source}", dataset, console)
    return complete


def source_configs(inputs: Path) -> Iterator[SourceConfig]:
    """The configs of `configs/`, pointed at the demo's inputs, in shards small enough to use two cores."""
    coco = inputs / "coco"
    settings: dict[str, dict[str, Any]] = {
        "laion": {"input": inputs / "laion", "shard_size": 64, "fetch": {"allow_private_hosts": True}},
        "images": {
            "input": inputs / "photos",
            "shard_size": 64,
            "derive": ["grey", "masked"],
            "layouts": {"pairs": 1.0},
        },
        "video": {"input": inputs / "videos", "shard_size": 2, "min_frames": 8, "windows_per_stride": 6},
        "annotated": {"input": coco / "images", "annotations": [coco / "instances.json"], "shard_size": 52}
        | {"derive": ["grey", "masked"]},
        "categories": {"input": inputs / "categories", "shard_size": 48},
        "annotated-video": {"input": inputs / "annotated_video", "shard_size": 12},
        "objaverse": {"input": inputs / "objects", "shard_size": 3},
    }
    for source, changes in settings.items():
        content = read_yaml(CONFIGS / f"{source}.yaml")
        holdout = {"test": 0.25} if source == "objaverse" else {"val": 0.15}
        content = {**content, **changes, "dataset": f"demo-{source}", "holdout": holdout}
        yield validate(source_class(source).config_class, content, f"the demo's {source}")


def _train(dataset: Path, run: Path, minutes: float, console: Console) -> None:
    if (run / MODEL / "config.json").exists():
        console.print(f"the model in {run / MODEL} is there already", markup=False)
        return
    content = {**read_yaml(CONFIGS / "tiny.yaml"), "max_minutes": minutes}
    config = validate(TrainConfig, content, "configs/tiny.yaml")
    console.print(f"training {config.size!r} for {minutes:g} minutes", markup=False)

    def show(record: dict[str, Any]) -> None:
        console.print(progress_line(record), markup=False, highlight=False)

    train(config, dataset, run, resume=run.exists(), on_progress=show)
