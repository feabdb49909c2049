"""Tokenizing: how close is the engine to the bare encoder, and how far ahead of a plain loop and a DataLoader?

In one run, by turns: (a) the encoder alone on a batch that lies on the device, which is the limit; (b) the engine, from
JPEG image shards to committed token shards; (c) the loop of published scripts: PIL, one picture at a time, fp32; (d) a
DataLoader with batches of 64, fp32. Images a second, the same pictures, the same cores. Besides: how good the pictures
come back, on crops of photos that the embedded tokenizer was never trained on.

    python -m uvd.benchmarks.tokenize [--tokenizer DIR] [--device cuda] [--precision bf16]
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from uvd.benchmarks.record import median, rounds_by_turns, write_result
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.image_shard import ImageShardWriter, read_image_shard
from uvd.pipeline.demo.packages import fetch_packages
from uvd.pipeline.tokenizing import ALLOCATOR, GPU_DECODE_THREADS, SHARDS_AT_ONCE
from uvd.sequences import Picture, Seeds, Transform, VisualSequence
from uvd.tokenize.batching import EncodingQueue
from uvd.tokenize.engine import DECODE_THREADS, tokenize_shard
from uvd.tokenize.metrics import measure_pictures
from uvd.tokenize.tokenizer import Tokenizer, find_folder, load_tokenizer

PHOTOS = ("skimage/data", "sklearn/datasets/images", "gradio/media_assets/images")
LOADER_BATCH = 64
CORES = sorted(os.sched_getaffinity(0))
QUALITY_BARS = {"psnr": 20.0, "ssim": 0.5, "codes_used": 0.6, "encoded_per_s_all_cores": 25.0}
"""Of the embedded tokenizer."""


def sample_photos(console: Console) -> list[NDArray[np.uint8]]:
    """The sample packages' photos of at least 256x256, `(H, W, 3)` uint8 RGB."""
    cache = fetch_packages(console)
    files = [file for folder in PHOTOS for file in sorted((cache / folder).iterdir())]
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in files if file.suffix in (".jpg", ".jpeg", ".png")]
    return [photo for photo in photos if min(photo.shape[:2]) >= 256]


def photo_crops(number: int) -> list[NDArray[np.uint8]]:
    """Seeded crops of the sample packages' photos, each `(256, 256, 3)` uint8 RGB."""
    photos = sample_photos(Console(stderr=True))
    crops = []
    for index in range(number):
        rng = Seeds(0, ("benchmark",)).generator(index)
        photo = photos[index % len(photos)]
        side = int(rng.integers(256, min(photo.shape[:2]) + 1))
        y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        crops.append(Transform(x, y, side, side).image(photo))
    return crops


def make_shards(dataset: Dataset, pictures: list[NDArray[np.uint8]], shards: int) -> list[Shard]:
    """Image shards of single pictures, as `uvd ingest laion` makes them."""
    made = []
    for number in range(shards):
        with ImageShardWriter(dataset, "photos", number) as writer:
            part = pictures[number::shards]
            for index, pixels in enumerate(part):
                picture = Picture("image", pixels, f"{number}/{index}", (256, 256))
                writer.add(VisualSequence((picture,), "single", "photos", "train", frozenset({index})))
            writer.commit(len(part), [], f"{number}")
        made.append(Shard("sequences/photos", number))
    return made


class Ways:
    """The four ways, each returning images a second."""

    def __init__(self, arguments: argparse.Namespace, dataset: Dataset, shards: list[Shard], images: int) -> None:
        self.arguments, self.dataset, self.shards, self.images = arguments, dataset, shards, images
        self.engine: Tokenizer = load_tokenizer(
            arguments.tokenizer,
            arguments.device,
            batch_size=arguments.batch_size,
            num_threads=arguments.threads,
            precision=arguments.precision,
            compiled=arguments.compile,
            encoder_only=True,
        )
        self.plain = load_tokenizer(arguments.tokenizer, arguments.device, batch_size=1, num_threads=arguments.threads)
        # As published scripts have it: whole model, torch's own memory format.
        self.plain_model = self.plain.model.to(memory_format=torch.contiguous_format)
        self.device = self.engine.device
        self.round = 0

    def bare_encoder(self) -> float:
        """(a) Latents and codes of one batch on the device, again and again."""
        tokenizer = self.engine
        stored = next(iter(read_image_shard(self.dataset, self.shards[0])))
        batch = torch.from_numpy(np.repeat(stored.pictures()[:1], tokenizer.batch_size, axis=0)).to(self.device)
        batches = max(1, self.images // tokenizer.batch_size)

        def encode() -> None:
            with tokenizer.inference():
                for _ in range(batches):
                    tokenizer.encode_on_device(batch)

        return batches * tokenizer.batch_size / self._timed(encode)

    def engine_end_to_end(self) -> float:
        """(b) JPEG image shards to committed token shards, as one actor does it."""
        self.round += 1
        name = f"round{self.round}"
        waiting = list(self.shards)
        lock = threading.Lock()

        def work(queue: EncodingQueue) -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    shard = waiting.pop()
                threads = GPU_DECODE_THREADS if self.device.type == "cuda" else DECODE_THREADS
                tokenize_shard(self.dataset, shard, name, queue, "benchmark", dict, threads)

        def run() -> None:
            with EncodingQueue(self.engine) as queue:
                workers = [threading.Thread(target=work, args=(queue,)) for _ in range(SHARDS_AT_ONCE)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()

        speed = self.images / self._timed(run)
        done = sum(self.dataset.metadata(shard)["images"] for shard in self.dataset.shards(f"tokens/{name}/photos"))
        if done != self.images:
            raise RuntimeError(f"the engine tokenized {done} of {self.images} images")
        return speed

    def plain_loop(self) -> float:
        """(c) PIL, one picture at a time, ids kept in memory."""
        files = self._jpegs()[: max(32, self.images // 4)]

        def run() -> None:
            with self.plain.inference():
                for data in files:
                    self.plain_model.encode(_as_tensor(data)[None].to(self.device)).cpu()

        return len(files) / self._timed(run)

    def data_loader(self) -> float:
        """(d) torch's DataLoader with worker processes, batches of 64, fp32."""
        workers = GPU_DECODE_THREADS if self.device.type == "cuda" else 1
        loader = torch.utils.data.DataLoader(
            JpegDataset(self._jpegs()), LOADER_BATCH, num_workers=workers, pin_memory=self.device.type == "cuda"
        )

        def run() -> None:
            with self.plain.inference():
                for batch in loader:
                    self.plain_model.encode(batch.to(self.device, non_blocking=True)).cpu()

        return self.images / self._timed(run)

    def _jpegs(self) -> list[bytes]:
        return [
            member.data
            for shard in self.shards
            for stored in read_image_shard(self.dataset, shard)
            for member in stored.members
        ]

    def _timed(self, run: Callable[[], None]) -> float:
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


class JpegDataset(torch.utils.data.Dataset):
    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return _as_tensor(self.files[index])


def _as_tensor(data: bytes) -> torch.Tensor:
    """`(3, 256, 256)` float in [0, 1], as published scripts make it."""
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


def quality(arguments: argparse.Namespace) -> dict[str, float]:
    """PSNR (dB), SSIM and use of the codebook over crops of the sample photos; encoding speed on all cores."""
    if not arguments.quality_images:
        return {}
    crops = photo_crops(arguments.quality_images)
    threads = 1 if arguments.device == "cuda" else len(CORES)
    if arguments.device == "cpu":
        os.sched_setaffinity(0, CORES)
    tokenizer = load_tokenizer(
        arguments.tokenizer, arguments.device, num_threads=threads, precision=arguments.precision
    )
    measured = measure_pictures(tokenizer, crops)
    part = np.stack(crops[:256])
    start = time.perf_counter()
    tokenizer.encode(part)
    return {
        "images": measured.pictures,
        "psnr": measured.psnr,
        "psnr_pooled": measured.psnr_pooled,
        "ssim": measured.ssim,
        "codes_used": measured.usage,
        "perplexity": measured.perplexity,
        "encoded_per_s_all_cores": len(part) / (time.perf_counter() - start),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="uvd-small", help="name or folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of (a) and (b)")
    parser.add_argument("--compile", action="store_true", help="torch.compile in (a) and (b)")
    parser.add_argument("--batch-size", type=int, default=None, help="of (a) and (b)")
    parser.add_argument("--threads", type=int, default=1, help="CPU: cores used; the process is pinned to as many")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quality-images", type=int, default=1000, help="crops to measure quality on; 0 for none")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; default benchmarks/results/tokenize-*.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if os.environ.get("MALLOC_ARENA_MAX") != ALLOCATOR["MALLOC_ARENA_MAX"]:
        # glibc reads these when a process starts; all four ways get what the actors get.
        os.execve(
            sys.executable, [sys.executable, "-m", "uvd.benchmarks.tokenize", *sys.argv[1:]], os.environ | ALLOCATOR
        )
    if arguments.device == "cpu":
        os.sched_setaffinity(0, CORES[: arguments.threads])
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(folder)
        shards = make_shards(dataset, photo_crops(arguments.images), arguments.shards)
        ways = Ways(arguments, dataset, shards, arguments.images)
        measured = rounds_by_turns(
            {
                "a bare encoder": ways.bare_encoder,
                "b engine": ways.engine_end_to_end,
                "c plain loop": ways.plain_loop,
                "d DataLoader": ways.data_loader,
            },
            arguments.rounds,
        )
    a, b, c, d = (median(values) for values in measured.values())
    ratios = {"b/a": b / a, "b/c": b / c, "b/d": b / d}
    reached = {**ratios, **quality(arguments)}
    bars = {"b/a": 0.95 if arguments.device == "cuda" else 0.85, "b/d": 1.3, **QUALITY_BARS}
    content = {
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
        "tokenizer_fingerprint": ways.engine.fingerprint,
        "batch_size": ways.engine.batch_size,
        "torch": torch.__version__,
        "images_per_s": measured,
        "median_images_per_s": {"a": a, "b": b, "c": c, "d": d},
        "ratios": ratios,
        "quality": {name: value for name, value in reached.items() if name not in ratios},
        "bars": {name: {"bar": bar, "met": reached[name] >= bar} for name, bar in bars.items() if name in reached},
    }
    name = f"tokenize-{find_folder(arguments.tokenizer).name}-{arguments.device}-{arguments.precision}"
    path = write_result(name, content, arguments.out)
    for label, value in reached.items():
        bar = f"  (bar {bars[label]})" if label in bars else ""
        print(f"{label}  {value:.2f}{bar}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
